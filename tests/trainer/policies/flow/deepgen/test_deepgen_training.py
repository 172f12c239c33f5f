"""Whole runs at small size, against a real rules service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.tiny_deepgen import TinyDeepGen
from tests.support.trainer_runs import read_metrics, saved_weights
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train
from trainer.policies.flow.deepgen.model import DeepGenFlow

SAMPLING = {
    "prompts_per_step": 2,
    "group_size": 4,
    "micro_batch_size": 4,
    "num_inference_steps": 3,
    "guidance_scale": 2.0,
}


@pytest.mark.parametrize(
    ("lora", "through"),
    [
        pytest.param(None, "conditional", id="full", marks=pytest.mark.slow),
        pytest.param({"rank": 4}, "both", id="lora"),
    ],
)
def test_two_steps_train_the_transformer_and_resume_exactly(
    recipe: Callable[..., Path],
    tiny: TinyDeepGen,
    build: Callable[..., DeepGenFlow],
    lora: dict[str, Any] | None,
    through: str,
) -> None:
    sampling = SAMPLING | {"guidance_gradient": through}

    def run(name: str, max_steps: int) -> Path:
        config = recipe(
            name, policy=tiny.section(lora=lora), sampling=sampling, max_steps=max_steps, objective={"kl_beta": 0.01}
        )
        train(load_config(config, Config))
        return Path(load_config(config, Config).run_dir)

    whole = run("whole", 2)
    rows = read_metrics(whole)[1:]  # the first is the evaluation of the starting weights
    assert [row["ratio/mean"] for row in rows] == [1.0, 1.0]  # one update a step: replayed under the sampling weights
    assert rows[0]["kl"] == 0.0 and rows[1]["kl"] > 0.0
    trained = saved_weights(whole / "checkpoints" / "step_000002")
    start = dict(build(lora=lora).network.named_parameters())
    assert trained.keys() == {name for name, parameter in start.items() if parameter.requires_grad}
    assert any(not torch.equal(tensor, start[name]) for name, tensor in trained.items())

    run("parted", 1)
    parted = run("parted", 2)
    again = saved_weights(parted / "checkpoints" / "step_000002")
    assert all(torch.equal(tensor, again[name]) for name, tensor in trained.items())


def test_edits_of_pictures_are_trained(recipe: Callable[..., Path], tiny: TinyDeepGen, tmp_path: Path) -> None:
    """Prompts with one source, two, and none in one data set; the first replay repeats the sampled log-probabilities."""
    for name, width in (("square.png", 64), ("wide.png", 128)):
        Image.effect_noise((width, 64), 80).convert("RGB").save(tmp_path / name)
    rows = [
        {"prompt": "make it flat", "source_images": ["square.png"]},
        {"prompt": "mix them", "source_images": ["wide.png", "square.png"]},
        {"prompt": "a grey wall"},
        {"prompt": "make it darker", "source_images": ["wide.png"]},
    ]
    (tmp_path / "edits.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = load_config(
        recipe(
            "edits",
            policy=tiny.section(),
            sampling=SAMPLING | {"prompts_per_step": 4, "micro_batch_size": 16},
            data={"train": [{"path": str(tmp_path / "edits.jsonl"), "rewards": {"small": 1.0}}]},
            evaluation={},
            max_steps=1,
        ),
        Config,
    )
    train(config)
    row = read_metrics(Path(config.run_dir))[-1]
    assert row["reward/small/valid_share"] == 1.0
    assert row["ratio/replay_error"] == 0.0
    assert row["grad_norm"] > 0.0
