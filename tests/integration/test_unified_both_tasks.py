"""Runs of both tasks: one that thinks before it draws, killed and started again, is the run that was not; and what first ratios are to."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support import reward_servers
from tests.support.reward_servers import ScriptedServer
from tests.support.trainer_runs import read_metrics, saved_weights, start_trainer
from tests.support.unified_runs import unified_changes, with_task
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train

scripted = reward_servers.scripted  # the fixture


def test_a_run_that_is_killed_and_started_again_is_the_run_that_was_not(
    recipe: Callable[..., Path], scripted: Callable[..., ScriptedServer], rules_url: str, tmp_path: Path
) -> None:
    changes = unified_changes(tmp_path / "given", scripted, rules_url)
    changes = with_task(changes, "generate", think={"max_new_tokens": 5, "plan_weight": 0.5})
    rows = [{"id": f"h{n}", "prompt": f"draw a green ring {n}"} for n in range(3)]
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    held_out = {"name": "drawn", "path": str(tmp_path / "heldout.jsonl"), "task": "generate"}
    changes["evaluation"] = {"every": 3, "batch_size": 4, "sets": [held_out]}
    paths = {name: recipe(name, max_steps=3, **changes) for name in ("whole", "killed")}
    whole, killed = (load_config(path, Config) for path in paths.values())
    assert train(whole) == 0
    with start_trainer(paths["killed"]) as process:
        metrics = killed.run_dir / "metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and '"step": 2' in metrics.read_text(encoding="utf-8"):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        assert process.wait(60) == -signal.SIGKILL
    assert train(killed) == 0
    told = read_metrics(whole.run_dir)
    assert read_metrics(killed.run_dir) == told
    assert all(row["grad_norm"] > 0 for row in told[1:]), "there was something to lose"
    one, other = (saved_weights(each.run_dir / "checkpoints" / "step_000003") for each in (whole, killed))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_first_ratios_are_to_what_the_recipe_says(
    recipe: Callable[..., Path],
    scripted: Callable[..., ScriptedServer],
    rules_url: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In bfloat16 drawing and reading differ: to the first replay ratios are exactly 1, to what was drawn they are not."""
    changes = unified_changes(tmp_path / "given", scripted, rules_url)
    changes["policy"] = changes["policy"] | {"dtype": "bfloat16", "check_sight": False}
    changes["optim"] = {"lr": 3e-4}
    rows = {}
    for kind in ("replay", "sampled"):
        path = recipe(kind, max_steps=1, **(changes | {"sampling": changes["sampling"] | {"old_logp": kind}}))
        config = load_config(path, Config)
        assert train(config) == 0
        assert f"old_logp: {kind}" in capfd.readouterr().err
        rows[kind] = read_metrics(config.run_dir)[-1]
    replay, sampled = rows["replay"], rows["sampled"]
    for task in ("understand", "generate"):
        assert replay[f"{task}/ratio/min"] == 1 == replay[f"{task}/ratio/max"]
        assert sampled[f"{task}/ratio/min"] < 1 < sampled[f"{task}/ratio/max"]
        assert abs(math.log(sampled[f"{task}/ratio/max"])) <= sampled[f"{task}/ratio/replay_error"] + 1e-6
        assert sampled[f"{task}/ratio/replay_error"] == replay[f"{task}/ratio/replay_error"] > 1e-4
