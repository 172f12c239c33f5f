"""Whole runs of a policy that reads and draws, with rewards that have a spread: one task alone, and pairs of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import reward_servers
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.tiny_janus import make_janus
from tests.support.tiny_vlm import save_pictures
from tests.support.trainer_runs import read_metrics
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train

scripted = reward_servers.scripted  # the fixture
QUESTION = "which is left ?\nA. red\nB. blue"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("janus")
    make_janus(place / "model")
    pictures = save_pictures(place / "pictures")
    pairs = [
        {
            "similarity": similarity,
            "generate_ann": {
                "image_path": pictures[n],
                "prompt": f"draw a red disc {n}",
                "question": QUESTION,
                "answer": "a",
            },
            "understand_ann": {
                "image_path": pictures[m],
                "prompt": "a disc",
                "question": f"{n} {QUESTION}",
                "answer": "a",
            },
        }
        for n, (m, similarity) in enumerate([(0, 1.0), (2, 0.64), (3, 0.25), (1, 0.88)])
    ]
    (place / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    for name, numbers in (("train", range(6)), ("heldout", range(6, 8))):
        rows = [{"id": f"d{n}", "prompt": f"draw a red disc {n}"} for n in numbers]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place


def by_pixels(request: dict[str, Any]) -> Reply:
    """A reward that nearly every image has another one of: by the bytes of its file."""
    return good(request, lambda item: (sum(request["parts"][item["images"][0]["part"]]) % 17) / 17)


def by_letters(request: dict[str, Any]) -> Reply:
    """A reward that nearly every answer has another one of."""
    return good(request, lambda item: (sum(item["completion"].encode()) % 17) / 17)


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


def test_both_tasks_are_trained_in_one_update(
    recipe: Callable[..., Path], folder: Path, scripted: Callable[..., ScriptedServer]
) -> None:
    understand = {"group_size": 2, "micro_batch_size": 4, "max_new_tokens": 5, "rewards": {"letters": 1.0}}
    generate = {"group_size": 4, "micro_batch_size": 4, "guidance_scale": 2.0, "rewards": {"pixels": 1.0}}
    path = recipe(
        "run",
        max_steps=2,
        policy={"type": "janus", "pretrained": str(folder / "model"), "dtype": "float32"},
        sampling={"prompts_per_step": 2, "tasks": {"understand": understand, "generate": generate}},
        rewards__services={
            "pixels": {"urls": [scripted(by_pixels).url]},
            "letters": {"urls": [scripted(by_letters).url]},
        },
        rewards__columns={
            "pixels": {"service": "pixels", "canary": "none"},
            "letters": {"service": "letters", "canary": "none"},
        },
        data__train=[{"path": str(folder / "pairs.jsonl"), "format": "pairs"}],
        evaluation={"every": 2},
    )
    config = load_config(path, Config)
    assert train(config) == 0
    rows = read_metrics(config.run_dir)
    for row in rows[1:]:
        assert row["grad_norm"] > 0
        assert row["understand/loss_share"] + row["generate/loss_share"] == pytest.approx(1.0)
        assert row["understand/ratio/replay_error"] < 1e-4 and row["generate/ratio/replay_error"] < 1e-4
        assert 0 < row["reward/pixels/mean"] < 1 and 0 < row["reward/letters/mean"] < 1
