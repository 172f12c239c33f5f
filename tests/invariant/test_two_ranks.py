"""Two real ranks (gloo): failures and signals that meet one of them only, and restarts with another number of ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import reward_servers
from tests.support.forked import ForkedTrainer
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.trainer_runs import (
    ROOT,
    read_metrics,
    run_trainer,
    saved_weights,
    start_trainer,
    trainer_command,
    trainer_environment,
)

Request = dict[str, Any]
scripted = reward_servers.scripted  # the fixture


def fails(prompt_id: str) -> bool:
    """About half of the prompts."""
    return zlib.crc32(prompt_id.encode()) % 2 == 0


def half_fails(request: Request) -> Reply:
    """By prompt, so that with one group a rank, many steps have a rank without any valid score."""
    reply = good(request, lambda item: (sum(item["id"].encode()) % 17) / 17)
    for result in reply.body["results"]:
        if fails(result["id"].partition("#")[0]):
            result |= {"score": None, "error": {"code": "parse_error", "message": "unreadable"}}
    return reply


def one_reward(url: str, **column: Any) -> dict[str, Any]:
    """Changes of the recipe: one group a rank, scored by the server at `url`."""
    return {
        "rewards": {
            "services": {"svc": {"urls": [url], "max_attempts": 1}},
            "columns": {"r": {"service": "svc", "canary": "none", "max_failure_rate": 1.0, **column}},
        },
        "data": {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"r": 1.0}}]},
        "sampling": {"prompts_per_step": 2, "group_size": 4, "micro_batch_size": 4, "num_inference_steps": 3},
        "optim": {"lr": 1e-3, "schedule": "constant"},
        "evaluation": {},
    }


def weights(run_dir: Path, step: int) -> torch.Tensor:
    tensors = saved_weights(run_dir / "checkpoints" / f"step_{step:06d}")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.slow
def test_a_rank_without_a_valid_score_takes_the_same_steps(
    recipe: Callable[..., Path], scripted: Callable[..., ScriptedServer], tmp_path: Path
) -> None:
    changes = one_reward(scripted(half_fails).url) | {
        "max_steps": 5,
        "objective": {"kl_beta": 0.1},
        "advantage": {"std_floor": 0.3},
    }
    run_trainer(recipe("one", **changes))
    run_trainer(recipe("two", **changes), ranks=2)
    one, two = tmp_path / "outputs" / "one", tmp_path / "outputs" / "two"
    rows = read_metrics(one)
    shares = {row["adv/trained_share"] for row in rows[1:]}
    assert 0.5 in shares, "no step had a rank without valid scores; choose other prompts to fail"
    for row, other in zip(rows, read_metrics(two), strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():  # null where nothing counted on any rank
            assert value == (None if other[key] is None else pytest.approx(other[key], rel=1e-3, abs=1e-5)), key
    torch.testing.assert_close(weights(one, 5), weights(two, 5), rtol=0, atol=1e-4)


def test_a_stop_on_one_rank_stops_both_and_saves(
    recipe: Callable[..., Path], scripted: Callable[..., ScriptedServer], tmp_path: Path
) -> None:
    changes = one_reward(scripted(half_fails).url, on_failure="stop") | {"max_steps": 20}
    started = time.monotonic()
    done = run_trainer(recipe("run", **changes), ranks=2, expect=1)
    assert time.monotonic() - started < 90
    assert "its on_failure is stop" in done.stderr + done.stdout
    (row, *_), run_dir = read_metrics(tmp_path / "outputs" / "run")[-1:], tmp_path / "outputs" / "run"
    assert weights(run_dir, row["step"]).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["second rank", pytest.param("launcher", marks=pytest.mark.slow)])
def test_sigterm_to_one_process_saves_and_the_run_goes_on_exactly(
    recipe: Callable[..., Path], scripted: Callable[..., ScriptedServer], tmp_path: Path, whom: str
) -> None:
    server = scripted(half_fails)
    changes = one_reward(server.url) | {"max_steps": 8, "checkpoint": {"save_every": 100}}
    config, run_dir = recipe("run", **changes), tmp_path / "outputs" / "run"
    slow = server.behave
    server.behave = lambda request: Reply(slow(request).body, delay_s=0.3)
    if whom == "launcher":
        with subprocess.Popen(
            trainer_command(config, ranks=2),
            cwd=ROOT,
            env=trainer_environment(),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        ) as torchrun:
            wait_for_row(run_dir, 2, torchrun)
            torchrun.send_signal(signal.SIGTERM)
            torchrun.communicate(timeout=300)
    else:
        with start_trainer(config, ranks=2) as launcher:
            wait_for_row(run_dir, 2, launcher)
            os.kill(second_rank(launcher.pid), signal.SIGTERM)
            assert launcher.wait(60) == 0
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    assert 2 <= int(checkpoint.name[-6:]) < 8
    server.behave = slow
    run_trainer(config, ranks=2)
    whole = recipe("whole", **changes)
    run_trainer(whole, ranks=2)
    assert torch.equal(weights(run_dir, 8), weights(tmp_path / "outputs" / "whole", 8))
    assert read_metrics(run_dir) == read_metrics(tmp_path / "outputs" / "whole")


@pytest.mark.slow
def test_a_restart_may_have_another_number_of_ranks(
    recipe: Callable[..., Path], scripted: Callable[..., ScriptedServer], tmp_path: Path
) -> None:
    changes = one_reward(scripted(half_fails).url)
    run_trainer(recipe("moved", **changes, max_steps=2), ranks=2)
    run_trainer(recipe("moved", **changes, max_steps=4))
    run_trainer(recipe("whole", **changes, max_steps=4))
    moved, whole = tmp_path / "outputs" / "moved", tmp_path / "outputs" / "whole"
    torch.testing.assert_close(weights(moved, 4), weights(whole, 4), rtol=0, atol=1e-4)


def wait_for_row(run_dir: Path, step: int, process: subprocess.Popen[bytes] | ForkedTrainer) -> None:
    deadline = time.monotonic() + 120
    metrics = run_dir / "metrics.jsonl"
    while not (metrics.exists() and f'"step": {step}' in metrics.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def second_rank(launcher: int) -> int:
    """The ranks are forked one after another."""
    _, second = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return int(second)
