"""A run of a policy that writes, on a user's reward file that the run serves itself: masks, counts, a tape and its replay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_vlm import make_vlm, save_pictures
from tests.support.trainer_runs import read_metrics
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train

pytestmark = pytest.mark.slow  # two whole runs and a service of their own

# As users have it; `odd` is made so that some of its answers fail.
FILE = """
def counts_tokens(prompts, completions, completion_ids, **columns):
    return [None if level == "open" else float(len(ids)) for ids, level in zip(completion_ids, columns["level"])]


def odd(completions, completion_ids, images, **kwargs):
    if any(sum(ids) % 2 for ids in completion_ids):
        raise ValueError("an odd one")
    return [float(len(pictures)) for pictures in images]


def spare(completions, **kwargs):
    return [0.0 for _ in completions]
"""
COLUMNS = {
    "accuracy": {"reward": "answer"},
    "length": {"reward": "overlong"},
    "tokens": {"reward": "counts_tokens", "canary": "none"},
    "odd": {"reward": "odd", "canary": "none", "max_failure_rate": 1.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("text rewards")
    make_vlm(place / "model")
    pictures = save_pictures(place / "pictures")
    rows = [
        {
            "id": f"q{n}",
            "prompt": f"which color ? {n}",
            "targets": ["red disc"],
            "source_images": pictures[: 1 + n % 2],
            "metadata": {"level": "open" if n == 0 else "easy"},
        }
        for n in range(4)
    ]
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (place / "reward_functions.py").write_text(FILE, encoding="utf-8")
    return place


def run(path: Path) -> tuple[Config, list[dict[str, Any]]]:
    config = load_config(path, Config)
    assert train(config) == 0
    return config, read_metrics(config.run_dir)


def test_a_users_reward_file_trains_and_its_tape_makes_the_run_again(recipe: Callable[..., Path], folder: Path) -> None:
    args = {"functions": f"{folder / 'reward_functions.py'}:counts_tokens,odd", "max_length": 6, "overlong_buffer": 4}
    changes: dict[str, Any] = {
        "max_steps": 2,
        "policy": {"type": "vlm", "pretrained": str(folder / "model"), "dtype": "float32"},
        "sampling": {"prompts_per_step": 4, "group_size": 4, "micro_batch_size": 8, "max_new_tokens": 6},
        "data__train": [{"path": str(folder / "train.jsonl"), "rewards": dict.fromkeys(COLUMNS, 1.0)}],
        "evaluation": {"path": None},
        "rewards": {
            "launch": "local",
            "services": {"rules": {"module": "rules", "args": args, "timeout_s": 60.0}},
            "columns": {name: {"service": "rules", **column} for name, column in COLUMNS.items()},
            "tape": {"mode": "record"},
            "ready_timeout_s": 300.0,
        },
    }
    config, rows = run(recipe("first", **changes))
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert row["reward/accuracy/valid_share"] == row["reward/length/valid_share"] == 1.0
        assert row["reward/tokens/valid_share"] == 0.75, "the open question has no such reward"
        assert not any(name.startswith("failed/tokens") for name in row), "and that is no failure"
        assert 1.0 <= row["reward/tokens/mean"] <= 6.0
    failed = sum(row.get("failed/odd/internal", 0) for row in rows)
    assert 0 < failed < 32, "about every second one, each alone"
    assert all(abs(row["ratio/mean"] - 1) < 1e-6 for row in rows[1:])
    said = (config.run_dir / "logs" / "rules.log").read_text(encoding="utf-8")
    assert "functions that could be rewards are not served" in said and "spare" in said

    rewards = {**changes["rewards"], "tape": {"mode": "replay", "path": str(config.run_dir / "tape")}}
    _, again = run(recipe("again", **{**changes, "rewards": rewards}))
    assert again == rows
