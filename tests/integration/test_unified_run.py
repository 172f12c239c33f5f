"""A whole run of a policy that reads and draws: one task alone, by a real trainer, a rules service and a reward with a spread."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import reward_servers
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.tiny_janus import make_janus
from tests.support.trainer_runs import read_metrics
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train

scripted = reward_servers.scripted  # the fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("janus")
    make_janus(place / "model")
    for name, numbers in (("train", range(6)), ("heldout", range(6, 8))):
        rows = [{"id": f"d{n}", "prompt": f"draw a red disc {n}"} for n in numbers]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place


def by_pixels(request: dict[str, Any]) -> Reply:
    """A reward that nearly every image has another one of."""
    return good(request, lambda item: (sum(str(item["images"][0]).encode()) % 17) / 17)


def test_images_alone_are_drawn_scored_and_trained_on(
    recipe: Callable[..., Path], folder: Path, scripted: Callable[..., ScriptedServer]
) -> None:
    task = {"group_size": 4, "micro_batch_size": 4, "guidance_scale": 2.0, "rewards": {"pixels": 1.0}}
    path = recipe(
        "run",
        max_steps=2,
        policy={"type": "janus", "pretrained": str(folder / "model"), "dtype": "float32"},
        sampling={"prompts_per_step": 2, "tasks": {"generate": task}},
        rewards__services={"pixels": {"urls": [scripted(by_pixels).url]}},
        rewards__columns={"pixels": {"service": "pixels", "canary": "none"}},
        data__train=[{"path": str(folder / "train.jsonl")}],
        evaluation={"path": str(folder / "heldout.jsonl"), "every": 2, "batch_size": 4, "temperature": 0.0},
    )
    config = load_config(path, Config)
    assert train(config) == 0
    rows = read_metrics(config.run_dir)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["grad_norm"] > 0 and row["generate/ratio/replay_error"] < 1e-4 for row in rows[1:])
    assert all(row["generate/ratio/mean"] == pytest.approx(1.0, abs=1e-6) for row in rows[1:])
    assert "eval/pixels" in rows[2]
