"""The program that makes the small VLM's base: stages, what is imitated, resumed to the bit, and the folder it writes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.trainer_runs import ROOT, read_metrics
from trainer.config import CardsConfig, Config, ConfigError, VlmConfig
from trainer.config.file import load_config
from trainer.loop import train
from trainer.policies.registry import build_policy
from trainer.policies.tokens.policy import TokenPolicy
from trainer.processes.distributed import World
from trainer.programs import vlm_base
from trainer.programs.vlm_base import Cards, VlmBase, lesson, stage_of
from trainer.quickstart.cards import Card, caption, draw_card, render
from trainer.quickstart.small_vlm import word_tokenizer
from trainer.types import Prompt

RECIPE = ROOT / "configs" / "vlm_base.yaml"
QUICKSTART = ROOT / "configs" / "vlm_quickstart.yaml"


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def small(folder: Path, *more: str) -> Config:
    changes = [
        *("max_steps=3", "cards.captions=1", "cards.careless=1", "cards.batch_size=4", "optim.warmup_steps=1"),
        *("distributed={num_threads: 1, device: cpu}", "logging.report_to=[]", "checkpoint.save_every=1"),
        *(f"output_dir={folder}", f"policy.pretrained={folder / 'base'}"),
    ]
    return load_config(RECIPE, Config, [*changes, *more])


def card() -> Card:
    return draw_card(random.Random(3), heldout=False)


def test_the_stages_follow_one_another() -> None:
    config = CardsConfig(captions=2, careless=3)
    found = [stage_of(step, config, 7) for step in range(7)]
    assert found == ["captions"] * 2 + ["thoughts"] * 2 + ["careless"] * 3


def test_each_stage_has_its_lessons() -> None:
    asked, rng = card(), random.Random(0)
    config = CardsConfig(recalled=0.0, mixed=0.0)
    assert lesson(asked, "captions", config, rng) == ("say", caption(asked.scene))
    pointed = f"<think> {asked.thought} </think> <answer> {asked.answer} </answer>"
    assert lesson(asked, "thoughts", config, rng) == (asked.question, pointed)
    answers = [lesson(asked, "careless", config, rng)[1] for _ in range(4000)]
    direct = [each for each in answers if not each.startswith("<think>")]
    assert len(direct) / len(answers) == pytest.approx(1 - config.thinking, abs=0.03)
    assert sum(asked.careless in each for each in direct) / len(direct) == pytest.approx(config.wrong, abs=0.04)
    untidy = sum("</answer>" not in each for each in answers) / len(answers)
    assert untidy == pytest.approx(config.untidy, abs=0.03)
    thought = [each.rpartition("</think>")[2] for each in answers if each.startswith("<think>")]
    right = sum(each.replace("<answer>", "").replace("</answer>", "").strip() == asked.answer for each in thought)
    assert right / len(thought) == pytest.approx(vlm_base.RIGHT_THOUGHTS, abs=0.03)
    mixed = [lesson(asked, "thoughts", CardsConfig(recalled=0.0, mixed=0.5), rng)[1] for _ in range(1000)]
    assert sum(each == pointed for each in mixed) / 1000 == pytest.approx(0.5 + 0.5 * 0.2 * 0.95 * 0.6, abs=0.06)


def test_every_word_that_is_taught_or_asked_is_known() -> None:
    tokenizer, rng = word_tokenizer(), random.Random(1)
    config = CardsConfig()
    for _ in range(200):
        each = draw_card(rng, heldout=False)
        for stage in ("captions", "thoughts", "careless"):
            for text in lesson(each, stage, config, rng):
                assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


def test_a_batch_is_what_the_processor_makes_of_the_same_cards(tmp_path: Path) -> None:
    """Pixels, placeholders and the turn's frame, so that what is trained is what is asked later."""
    config = small(tmp_path)
    policy = vlm_base._policy(config, torch.device("cpu"))
    cards = Cards(CardsConfig(batch_size=2), 5, 10, World(0, 1, torch.device("cpu")))
    batch = cards.draw(200, policy.model)
    rng = random.Random(5)
    for row in range(2):
        each = draw_card(rng, heldout=False)
        question, answer = lesson(each, "careless", cards.config, rng)
        path = tmp_path / f"{row}.png"
        render(each.scene, rng).save(path)
        reading = policy.model.read(Prompt("a", question, source_images=(str(path),)))
        length, tokens = len(reading.ids_T), torch.tensor([*policy.model.encode(answer), policy.model.ends[0]])
        assert batch.ids_BW[row, :length].equal(reading.ids_T)
        assert batch.ids_BW[row, length : length + len(tokens)].equal(tokens)
        labels = batch.labels_BW[row]
        assert labels[labels != -100].equal(tokens) and (labels[:length] == -100).all()
        assert torch.allclose(batch.pixels[row], reading.inputs["pixel_values"][0], atol=1e-6)


def test_all_ranks_together_train_on_the_batch_of_one(tmp_path: Path) -> None:
    policy = vlm_base._policy(small(tmp_path), torch.device("cpu"))
    config = CardsConfig(batch_size=4)

    def drawn(rank: int, size: int) -> Any:
        return Cards(config, 5, 10, World(rank, size, torch.device("cpu"))).draw(0, policy.model)

    whole, parts = drawn(0, 1), [drawn(rank, 2) for rank in range(2)]
    assert torch.cat([part.pixels for part in parts]).equal(whole.pixels)
    assert [row[row != policy.model.pad_id].tolist() for part in parts for row in part.ids_BW] == [
        row[row != policy.model.pad_id].tolist() for row in whole.ids_BW
    ]


def _stopped_after_two(step: Callable[[VlmBase], Any]) -> Callable[[VlmBase], Any]:
    def stopped(run: VlmBase) -> Any:
        if run.session.step == 2:
            raise RuntimeError("the plug was pulled")
        return step(run)

    return stopped


def test_a_run_is_resumed_to_the_bit_and_its_folder_can_be_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(small(tmp_path)) == 0
    losses = [row["loss/imitation"] for row in read_metrics(tmp_path / "vlm_base")[1:]]
    assert len(losses) == 3
    assert "3 steps of 4 cards" in (tmp_path / "base" / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(VlmBase, "step", _stopped_after_two(VlmBase.step))
    with pytest.raises(RuntimeError, match="the plug was pulled"):
        train(small(tmp_path, "run_name=cut"))
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    assert train(small(tmp_path, "run_name=cut")) == 0
    assert [row["loss/imitation"] for row in read_metrics(tmp_path / "cut")[1:]] == losses
    section = load_config(QUICKSTART, Config).policy.model_copy(update={"pretrained": str(tmp_path / "base")})
    policy = build_policy(section, torch.device("cpu"), keep_reference=False)
    assert isinstance(policy, TokenPolicy)
    assert sum(parameter.numel() for parameter in policy.trainable.parameters()) == 748_608


def test_the_shipped_base_is_small_and_fits_its_recipes() -> None:
    base = ROOT / "assets" / "vlm_base"
    assert sum(path.stat().st_size for path in base.iterdir()) <= 8_000_000
    made, used = load_config(RECIPE, Config), load_config(QUICKSTART, Config)
    assert isinstance(made.policy, VlmConfig) and isinstance(used.policy, VlmConfig)
    assert made.policy.pretrained == used.policy.pretrained == base.relative_to(ROOT).as_posix()
    policy = build_policy(used.policy, torch.device("cpu"), keep_reference=False)
    assert all(parameter.isfinite().all() for parameter in policy.trainable.parameters())
    about = (base / "README.md").read_text(encoding="utf-8")
    assert f"{made.max_steps} steps of {made.cards and made.cards.batch_size} cards" in about


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["cards=null"], r"program: vlm_base trains on cards with questions; give the section cards"),
        (["cards.captions=3"], r"cards\.captions \+ cards\.careless = 3 \+ 1 steps are more than max_steps = 3"),
        (["policy={type: tiny}"], r"program: vlm_base writes the folder that a policy of type vlm starts from"),
        (["program=rl"], r"no training set"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        small(tmp_path, *changes)
