"""Long prompts: what each encoder does not read is counted once, before training, and never said prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_pipelines import make_flux, make_qwen_image, make_sd3
from tests.support.trainer_runs import run_trainer
from trainer.config import Config, DeepGenConfig, PolicyConfig, TinyConfig
from trainer.config.file import load_config
from trainer.doctor.prompts import check_data
from trainer.policies.registry import TextLimit, build_model, entry_of
from trainer.programs.prompt_notes import prompt_notes
from trainer.types import Prompt

MAKERS: dict[str, Callable[[Path], Path]] = {"sd3": make_sd3, "flux": make_flux, "qwen_image": make_qwen_image}
LENGTH = 90  # tokens that T5 and Qwen read, more than CLIP's 77


def limits_of(section: PolicyConfig) -> list[TextLimit]:
    return entry_of(section).text_limits(section)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


def make_config(folders: Mapping[str, Path], name: str, **changes: Any) -> Config:
    policy = {"type": name, "pretrained": str(folders[name]), "dtype": "float32", "max_sequence_length": LENGTH}
    config = {
        "run_name": "run",
        "max_steps": 1,
        "policy": policy,
        "rewards": {
            "services": {"ocr": {"urls": ["http://127.0.0.1:9"]}, "hps": {"urls": ["http://127.0.0.1:9"]}},
            "columns": {"ocr": {"service": "ocr"}, "hps": {"service": "hps"}},
        },
        "data": {"train": [{"path": "a.txt", "name": "signs", "rewards": {"ocr": 1.0}}]},
        **changes,
    }
    return Config.model_validate(config)


def texts_read(model: Any, limit: str, text: str) -> Tensor:
    """The states of one encoder: SD3's first 77 are CLIP's; FLUX has T5's states and CLIP's pooled vector."""
    (row,) = model.texts([text])
    if limit == "CLIP":
        return row["pooled"]
    return row["states"][77:] if len(row["states"]) > LENGTH else row["states"]


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_what_is_counted_as_lost_is_what_the_encoder_does_not_read(folders: dict[str, Path], name: str) -> None:
    config = make_config(folders, name)
    limits = limits_of(config.policy)
    assert [(limit.encoder, limit.tokens) for limit in limits] == [("CLIP", 77), ("T5", LENGTH)]
    model = build_model(config.policy, torch.device("cpu"))
    text = "".join(chr(97 + i % 26) + " " * (i % 5 == 4) for i in range(120))
    for limit in limits:
        place = limit.lost_from(text)
        assert place is not None and 40 < place < 110
        kept, other = text[:place], text[:place] + "zq"
        whole = texts_read(model, limit.encoder, text)
        assert torch.equal(texts_read(model, limit.encoder, other), whole), "what follows is not read"
        changed = kept[:-2] + ("q" if kept[-2] != "q" else "z") + kept[-1] + text[place:]
        assert not torch.equal(texts_read(model, limit.encoder, changed), whole), "what stands before it is"
        assert limit.lost_from(kept) is None


def test_qwen_image_reads_as_many_tokens_of_the_prompt_itself(folders: dict[str, Path]) -> None:
    """Published tokenizers make 34 tokens of the frame's beginning, which the pipeline drops; those of a test make more."""
    (limit,) = limits_of(make_config(folders, "qwen_image").policy)
    assert (limit.encoder, limit.tokens) == ("Qwen2.5-VL", LENGTH)
    assert (limit.lost_from("x" * LENGTH), limit.lost_from("x" * (LENGTH + 1))) == (None, LENGTH)


def test_the_sentence_counts_sets_and_names_texts_that_are_not_read(folders: dict[str, Path]) -> None:
    config = make_config(folders, "flux")
    weights = {"ocr": 1.0}
    prompts = [
        Prompt("s1", 'short "A"', "signs", weights),
        Prompt("s2", f'"EARLY" {"x" * 80}', "signs", weights),
        Prompt("s3", f'{"x" * 80} "LATE"', "signs", weights),
        Prompt("s4", f"{'x' * 95} late and LATE", "signs", weights, ("late",)),
        Prompt("p1", f'{"x" * 95} "LATE"', "pictures", {"hps": 1.0}),
        Prompt("h1", f"{'x' * 95} no quote", "held"),
    ]
    clip, t5 = prompt_notes(config, prompts)
    assert clip.sentence == (
        "5 of 6 prompts lose words after 77 tokens (CLIP; T5 reads 90): signs 3, pictures 1, held 1; in 2 of them that is a "
        "text that OCR looks for, first 'LATE' of s3"
    )
    assert t5.sentence.startswith(
        "3 of 6 prompts lose words after 90 tokens (T5): signs 1, pictures 1, held 1; in 1 of them"
    )
    assert t5.remedy.startswith("raise policy.max_sequence_length")
    assert prompt_notes(config, prompts[:1]) == []


def test_a_long_negative_prompt_counts_too(folders: dict[str, Path]) -> None:
    prompts = [Prompt("a", "a cat", negative_prompt="x" * 80), Prompt("b", "a dog")]
    notes = [note.sentence for note in prompt_notes(make_config(folders, "sd3"), prompts)]
    assert notes[0].startswith("1 of 2 prompts lose words after 77 tokens")
    assert notes[1].startswith("1 of 2 prompts have a negative_prompt, and training has no guidance")
    guided = make_config(folders, "sd3", sampling={"guidance_scale": 4.5})
    assert len(prompt_notes(guided, prompts)) == 1


def test_policies_that_read_all_or_refuse_have_no_limit() -> None:
    assert limits_of(TinyConfig()) == limits_of(DeepGenConfig(type="deepgen")) == []


def test_a_run_counts_long_prompts_once_and_the_libraries_are_silent(
    folders: dict[str, Path], tmp_path: Path, recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.txt").write_text("".join(f"{letter * 100} red\n" for letter in "abcd"))
    policy = {"type": "sd3", "pretrained": str(folders["sd3"]), "dtype": "float32", "max_sequence_length": LENGTH}
    sampling = {"prompts_per_step": 2, "group_size": 2, "micro_batch_size": 4, "num_inference_steps": 2, "shift": None}
    data = {"train": [{"path": str(tmp_path / "long.txt"), "rewards": {"color": 1.0}}]}
    config = recipe(
        max_steps=1, policy=policy, sampling=sampling | {"height": 16, "width": 16}, data=data, evaluation={}
    )
    done = run_trainer(config)
    said = done.stdout + done.stderr
    assert said.count("4 of 4 prompts lose words after 77 tokens (CLIP; T5 reads 90): long 4") == 1
    assert said.count("4 of 4 prompts lose words after 90 tokens (T5): long 4") == 1
    assert "truncated" not in said and "sequence length is longer" not in said
    capfd.readouterr()
    found = [finding for finding in check_data(load_config(config, Config)) if "lose words" in finding.message]
    assert capfd.readouterr().err == "", "nor is the doctor interrupted"
    assert [finding.status for finding in found] == ["WARN", "WARN"] and all(finding.remedy for finding in found)


def test_the_doctor_does_not_call_good_what_it_could_not_look_at(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\n")
    data = {"train": [{"path": str(tmp_path / "a.txt"), "rewards": {"ocr": 1.0}}]}
    missing = make_config({"sd3": tmp_path / "nowhere"}, "sd3", data=data)
    found = [
        f for f in check_data(missing) if f.message.startswith("whether long prompts lose words was not looked at")
    ]
    assert [finding.status for finding in found] == ["NOT CHECKED"]
    fine = [f.message for f in check_data(make_config(folders, "sd3", data=data)) if f.status == "OK"]
    assert "no prompt loses words: sd3 reads 77 tokens (CLIP) and 90 tokens (T5)" in fine
