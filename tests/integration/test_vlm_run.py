"""A whole run of a policy that writes: prompts with images, a real rules service and a reward with a spread, killed and resumed."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support import reward_servers
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.tiny_vlm import make_vlm, save_pictures
from tests.support.trainer_runs import read_metrics, saved_weights, start_trainer
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train
from trainer.policies.registry import build_model

scripted = reward_servers.scripted  # the fixture


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


def by_letters(request: dict[str, Any]) -> Reply:
    """A reward that nearly every answer has another one of: what random weights say, no rule could tell apart."""
    return good(request, lambda item: (sum(item["completion"].encode()) % 17) / 17)


@pytest.fixture
def vlm_recipe(
    recipe: Callable[..., Path], folder: Path, scripted: Callable[..., ScriptedServer], rules_url: str
) -> Callable[..., Path]:
    """A small run of the tiny model: two prompts a step, four answers each."""
    letters = scripted(by_letters).url

    def write(name: str = "run", **changes: Any) -> Path:
        given: dict[str, Any] = {
            "max_steps": 3,
            "policy": {"type": "vlm", "pretrained": str(folder / "model"), "dtype": "float32"},
            "sampling": {"prompts_per_step": 2, "group_size": 4, "micro_batch_size": 4, "max_new_tokens": 6},
            "rewards__services": {"rules": {"urls": [rules_url]}, "letters": {"urls": [letters]}},
            "rewards__columns": {
                "letter": {"service": "rules", "reward": "option_letter"},
                "letters": {"service": "letters", "canary": "none"},
            },
            "data__train": [{"path": str(folder / "train.jsonl"), "rewards": {"letter": 1.0, "letters": 1.0}}],
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
    assert rows[-1]["reward/letter/valid_share"] == 1 == rows[-1]["reward/letters/valid_share"]
    assert all(row["grad_norm"] > 0 for row in rows[1:])
    start = build_model(config.policy, torch.device("cpu")).network.state_dict()
    now = saved_weights(config.run_dir / "checkpoints" / "step_000003")
    assert any(not torch.equal(tensor, start[name]) for name, tensor in now.items())
    assert all(row["ratio/replay_error"] < 1e-4 and abs(row["ratio/mean"] - 1) < 1e-6 for row in rows[1:])
    samples = json.loads((config.run_dir / "samples/step_000003.json").read_text(encoding="utf-8"))
    assert samples[0]["text"] is not None


def test_a_run_that_is_killed_and_started_again_is_the_run_that_was_not(vlm_recipe: Callable[..., Path]) -> None:
    whole, rows = run(vlm_recipe("whole"))
    path = vlm_recipe("killed")
    killed = load_config(path, Config)
    with start_trainer(path) as process:
        metrics = killed.run_dir / "metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and '"step": 2' in metrics.read_text(encoding="utf-8"):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        assert process.wait(60) == -signal.SIGKILL
    assert train(killed) == 0
    assert read_metrics(killed.run_dir) == rows
    one, other = (saved_weights(each.run_dir / "checkpoints" / "step_000003") for each in (whole, killed))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


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
