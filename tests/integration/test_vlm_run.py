"""A whole run of a policy that writes: prompts with images, a real rules service, resume, two ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.tiny_vlm import make_vlm, save_pictures
from tests.support.trainer_runs import read_metrics, saved_weights
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("vlm")
    make_vlm(place / "model")
    pictures = save_pictures(place / "pictures")
    rows = [
        {"id": f"q{n}", "prompt": f"which color ? {n}", "targets": ["A"], "source_images": pictures[: n % 3] or None}
        for n in range(8)
    ]
    for name, part in (("train", rows[:6]), ("heldout", rows[6:])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return place


@pytest.fixture
def vlm_recipe(recipe: Callable[..., Path], folder: Path) -> Callable[..., Path]:
    """A small run of the tiny model: four prompts a step, four answers each."""

    def write(name: str = "run", **changes: Any) -> Path:
        given: dict[str, Any] = {
            "max_steps": 3,
            "policy": {"type": "vlm", "pretrained": str(folder / "model"), "dtype": "float32"},
            "sampling": {"prompts_per_step": 2, "group_size": 4, "micro_batch_size": 4, "max_new_tokens": 6},
            "rewards__columns": {
                "letter": {"service": "rules", "reward": "option_letter"},
                "format": {"service": "rules", "reward": "think_format"},
            },
            "data__train": [{"path": str(folder / "train.jsonl"), "rewards": {"letter": 1.0, "format": 0.5}}],
            "evaluation": {"path": str(folder / "heldout.jsonl"), "every": 2, "batch_size": 4, "temperature": 0.0},
        }
        return recipe(name, **{**given, **changes})

    return write


def run(path: Path) -> tuple[Config, list[dict[str, Any]]]:
    config = load_config(path, Config)
    assert train(config) == 0
    return config, read_metrics(config.run_dir)


def test_a_run_samples_scores_and_moves(vlm_recipe: Callable[..., Path]) -> None:
    config, rows = run(vlm_recipe())
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    last = rows[-1]
    assert last["reward/letter/valid_share"] == 1
    assert all(row["ratio/replay_error"] < 1e-4 and abs(row["ratio/mean"] - 1) < 1e-6 for row in rows[1:])
    samples = json.loads((config.run_dir / "samples/step_000003.json").read_text(encoding="utf-8"))
    assert samples[0]["text"] is not None


def test_a_resumed_run_is_the_same(vlm_recipe: Callable[..., Path]) -> None:
    whole, rows = run(vlm_recipe("whole"))
    part = vlm_recipe("part")
    first = load_config(part, Config, ["max_steps=2"])
    assert train(first) == 0
    assert train(load_config(part, Config)) == 0
    again = read_metrics(first.run_dir)
    for key in ("reward/letter/mean", "loss/policy", "grad_norm"):
        assert [row.get(key) for row in rows] == [row.get(key) for row in again]
    newest = [sorted((each.run_dir / "checkpoints").glob("step_*"))[-1] for each in (whole, first)]
    for name, tensor in saved_weights(newest[0]).items():
        assert torch.equal(tensor, saved_weights(newest[1])[name]), name


def test_groups_that_teach_nothing_are_drawn_again(vlm_recipe: Callable[..., Path]) -> None:
    """Random weights never think in tags, so every group is flat, and every step samples as often as it may."""
    sampling = {"prompts_per_step": 2, "group_size": 2, "micro_batch_size": 4, "max_new_tokens": 4, "max_resamples": 2}
    columns = {"format": {"service": "rules", "reward": "think_format", "canary": "score"}}
    path = vlm_recipe(sampling=sampling, rewards__columns=columns, max_steps=2)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["data"]["train"][0]["rewards"] = {"format": 1.0}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    _, rows = run(path)
    assert [row["resampled"] for row in rows[1:]] == [2, 2]
