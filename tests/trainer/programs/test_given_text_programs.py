"""Supervised and preference runs of a policy that writes: whole runs in this process, on the tiny vision-language model."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.trainer_runs import ROOT, read_metrics, saved_weights
from tests.support.vlm_runs import write_recipe, write_texts
from trainer.config import Config, ConfigError
from trainer.config.file import load_config
from trainer.doctor import examine
from trainer.loop import train

Make = Callable[..., Config]
PROGRAMS = ("supervised", "preference")


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("texts")
    write_texts(found)
    return found


@pytest.fixture
def make(folder: Path) -> Make:
    def config(program: str, name: str, **changes: Any) -> Config:
        return load_config(write_recipe(folder, program, name, **changes), Config)

    return config


def final(config: Config, kind: str = "weight") -> dict[str, torch.Tensor]:
    return saved_weights(config.run_dir / "checkpoints" / f"step_{config.max_steps:06d}", kind)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_learns_what_it_is_given_and_goes_on_bit_for_bit(make: Make, program: str) -> None:
    loss = {"supervised": "loss/sft", "preference": "loss/policy"}[program]
    whole = make(program, f"{program}_whole", max_steps=8, optim__lr=3e-3)
    assert train(whole) == 0
    rows = read_metrics(whole.run_dir)[1:]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1][loss] < 0.8 * rows[0][loss]
    if program == "preference":
        assert rows[0][loss] == torch.tensor(math.log(2)).item() and rows[0]["dpo/kl"] == 0
        assert rows[-1]["dpo/accuracy"] == 1 and rows[-1]["dpo/margin"] > 0 and rows[-1]["dpo/kl"] > 0
    cut = make(program, f"{program}_cut", max_steps=5, optim__lr=3e-3)
    assert train(cut) == 0
    again = make(program, f"{program}_cut", max_steps=8, optim__lr=3e-3)
    assert train(again) == 0
    assert same(final(again), final(whole)) and read_metrics(again.run_dir)[1:] == rows
    assert (whole.run_dir / "report.html").is_file()


@pytest.fixture(scope="module")
def blind(folder: Path) -> Path:
    """The model with a projector whose weights were lost."""
    from safetensors.torch import load_file, save_file

    found = shutil.copytree(folder / "model", folder / "blind")
    weights = load_file(found / "model.safetensors")
    for name, tensor in weights.items():
        if "modality_projection" in name:
            tensor.zero_()
    save_file(weights, found / "model.safetensors", {"format": "pt"})
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_that_is_blind_stops_before_its_first_step(
    make: Make, folder: Path, blind: Path, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make(program, f"{program}_blind", max_steps=1, policy__pretrained=str(blind))
    with pytest.raises(
        ConfigError, match=r"stopped before step 1: the model does not see its images: .*policy\.check_sight"
    ):
        train(config)
    assert not list((config.run_dir / "checkpoints").glob("step_*"))
    assert "sight: FAIL image: the model does not see its images" in capsys.readouterr().err
    findings = [each for each in examine(folder / f"{program}_blind.yaml") if each.area == "sight"]
    assert [(each.status, each.message.partition(":")[0]) for each in findings] == [
        ("FAIL", "image"),
        ("OK", "rows"),
        ("NOT CHECKED", "replay"),
        ("OK", "placeholders"),
    ]
    off = make(program, f"{program}_off", max_steps=1, policy__pretrained=str(blind), policy__check_sight=False)
    assert train(off) == 0
    assert not (off.run_dir / "sight.json").exists()
    [finding] = [each for each in examine(folder / f"{program}_off.yaml") if each.area == "sight"]
    assert finding.status == "WARN"


def test_what_is_proven_is_told_and_kept(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = make("supervised", "proven", max_steps=1)
    assert train(config) == 0
    kept = json.loads((config.run_dir / "sight.json").read_text())
    assert [(each["check"], each["status"]) for each in kept] == [
        ("image", "OK"),
        ("rows", "OK"),
        ("replay", "NOT CHECKED"),
        ("placeholders", "OK"),
    ]
    assert "sight: OK image: a blank image moves" in capsys.readouterr().err
    page = (config.run_dir / "report.html").read_text()
    assert "Proven before the first step" in page and kept[0]["sentence"] in page


def test_the_recipes_of_the_page_are_recipes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "given_texts.md").read_text(encoding="utf-8")
    found = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    programs = []
    for number, text in enumerate(found):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, encoding="utf-8")
        programs.append(load_config(path, Config).program)
    assert programs == ["supervised", "preference"]


@pytest.mark.parametrize(("program", "section"), [("supervised", "conversations"), ("preference", "preferences")])
def test_a_deepspeed_file_is_compared_with_the_batch_of_the_section(
    make: Make, tmp_path: Path, program: str, section: str
) -> None:
    path = tmp_path / "zero.json"
    for size in (4, 8):
        path.write_text(json.dumps({"zero_optimization": {"stage": 2}, "train_batch_size": size}), encoding="utf-8")
        if size == 4:
            make(program, f"{program}_zero", distributed__deepspeed=str(path))
        else:
            with pytest.raises(ConfigError, match=rf"train_batch_size is 8 in .*, but {section}\.batch_size is 4"):
                make(program, f"{program}_zero", distributed__deepspeed=str(path))


@pytest.mark.slow
def test_a_run_by_rewards_proves_it_too(recipe: Callable[..., Path], folder: Path, blind: Path, tmp_path: Path) -> None:
    pictures = sorted(str(path) for path in folder.glob("picture*.png"))
    rows = [
        {"id": f"q{n}", "prompt": f"which color ? {n}", "targets": ["A"], "source_images": pictures[n : n + 1]}
        for n in range(4)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes: dict[str, Any] = {
        "max_steps": 1,
        "policy": {"type": "vlm", "pretrained": str(folder / "model"), "dtype": "float32"},
        "sampling": {"prompts_per_step": 2, "group_size": 2, "micro_batch_size": 4, "max_new_tokens": 6},
        "rewards__columns": {"letter": {"service": "rules", "reward": "option_letter"}},
        "data__train": [{"path": str(tmp_path / "train.jsonl"), "rewards": {"letter": 1.0}}],
        "evaluation": {},
    }
    sound = load_config(recipe("sound", **changes), Config)
    assert train(sound) == 0
    kept = json.loads((sound.run_dir / "sight.json").read_text())
    assert [each["status"] for each in kept] == ["OK"] * 4
    path = recipe("blind", **{**changes, "policy": {**changes["policy"], "pretrained": str(blind)}})
    with pytest.raises(ConfigError, match="stopped before step 1: the model does not see its images"):
        train(load_config(path, Config))
    found = {each.message.partition(":")[0]: each.status for each in examine(path) if each.area == "sight"}
    assert found == {"image": "FAIL", "rows": "OK", "replay": "OK", "placeholders": "OK"}
