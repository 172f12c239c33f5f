"""A run that is killed between any two steps and started again is the run that was not, bit for bit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.trainer_runs import (
    ROOT,
    read_metrics,
    run_command,
    run_trainer,
    saved_weights,
    start_trainer,
)

STEPS = 4


def final(run_dir: Path) -> dict[str, torch.Tensor]:
    checkpoint = run_dir / "checkpoints" / f"step_{STEPS:06d}"
    average = saved_weights(checkpoint, "average")
    return saved_weights(checkpoint) | {f"average.{name}": tensor for name, tensor in average.items()}


def start_and_signal(config: Path, run_dir: Path, after_step: int, kind: signal.Signals) -> int:
    """Start the run, send `kind` as soon as row `after_step` is written, and return the exit code."""
    with start_trainer(config) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            metrics = run_dir / "metrics.jsonl"
            if metrics.exists() and f'"step": {after_step}' in metrics.read_text(encoding="utf-8"):
                process.send_signal(kind)
                break
            time.sleep(0.005)
        return process.wait(60)


@pytest.fixture(scope="module")
def _uninterrupted() -> dict[str, object]:
    return {}


def uninterrupted(recipe: Callable[..., Path], tmp_path: Path, cache: dict[str, object]) -> tuple[object, object]:
    """The reference run, made once per module."""
    if not cache:
        run_trainer(recipe("whole"))
        run_dir = tmp_path / "outputs" / "whole"
        cache["final"], cache["metrics"] = final(run_dir), read_metrics(run_dir)
    return cache["final"], cache["metrics"]


@pytest.mark.parametrize("kill_after", [1, *(pytest.param(step, marks=pytest.mark.slow) for step in (0, 2, 3))])
@pytest.mark.parametrize("save_every", [1])
def test_sigkill_between_any_two_steps_changes_nothing(
    recipe: Callable[..., Path], tmp_path: Path, _uninterrupted: dict[str, object], kill_after: int, save_every: int
) -> None:
    expected_final, expected_metrics = uninterrupted(recipe, tmp_path, _uninterrupted)
    config = recipe("killed", checkpoint__save_every=save_every)
    run_dir = tmp_path / "outputs" / "killed"
    assert start_and_signal(config, run_dir, kill_after, signal.SIGKILL) == -signal.SIGKILL
    # One start is the command itself: another process's hashes and addresses change nothing either.
    run_command(config) if kill_after == 1 else run_trainer(config)
    actual = final(run_dir)
    assert isinstance(expected_final, dict) and actual.keys() == expected_final.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected_final[name]), name
    assert read_metrics(run_dir) == expected_metrics


def test_a_kill_far_from_the_last_checkpoint_repeats_the_steps_between(
    recipe: Callable[..., Path], tmp_path: Path, _uninterrupted: dict[str, object]
) -> None:
    expected_final, expected_metrics = uninterrupted(recipe, tmp_path, _uninterrupted)
    config = recipe("far", checkpoint__save_every=2)
    run_dir = tmp_path / "outputs" / "far"
    assert start_and_signal(config, run_dir, 3, signal.SIGKILL) == -signal.SIGKILL
    run_trainer(config)
    assert isinstance(expected_final, dict)
    assert all(torch.equal(tensor, expected_final[name]) for name, tensor in final(run_dir).items())
    assert read_metrics(run_dir) == expected_metrics


def test_sigterm_saves_and_exits_0_and_the_run_goes_on(
    recipe: Callable[..., Path], tmp_path: Path, _uninterrupted: dict[str, object]
) -> None:
    expected_final, _ = uninterrupted(recipe, tmp_path, _uninterrupted)
    config = recipe("polite", checkpoint__save_every=100)
    run_dir = tmp_path / "outputs" / "polite"
    assert start_and_signal(config, run_dir, 1, signal.SIGTERM) == 0
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    assert checkpoint.name in ("step_000001", "step_000002", "step_000003")
    run_trainer(config)
    assert isinstance(expected_final, dict)
    assert all(torch.equal(tensor, expected_final[name]) for name, tensor in final(run_dir).items())


@pytest.mark.slow
def test_another_seed_is_another_run(
    recipe: Callable[..., Path], tmp_path: Path, _uninterrupted: dict[str, object]
) -> None:
    expected_final, _ = uninterrupted(recipe, tmp_path, _uninterrupted)
    run_trainer(recipe("other", seed=2))
    assert isinstance(expected_final, dict)
    assert any(not torch.equal(t, expected_final[n]) for n, t in final(tmp_path / "outputs" / "other").items())


@pytest.mark.slow
def test_changed_prompts_refuse_to_resume(recipe: Callable[..., Path], tmp_path: Path) -> None:
    prompts = tmp_path / "train.jsonl"
    lines = (ROOT / "assets" / "quickstart" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    prompts.write_text("".join(lines[:20]), encoding="utf-8")
    data = {"train": [{"path": str(prompts), "rewards": {"color": 1.0}}]}
    run_trainer(recipe("changed", data=data, max_steps=1))
    prompts.write_text("".join(lines[:21]), encoding="utf-8")
    done = run_trainer(recipe("changed", data=data, max_steps=2), expect=2)
    assert "have changed since the run was started" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_reordered_rewards_refuse_to_resume(recipe: Callable[..., Path], tmp_path: Path, rules_url: str) -> None:
    color = {"service": "rules", "reward": "color_match"}
    small = {"service": "rules", "reward": "jpeg_compressibility"}
    services = {"rules": {"urls": [rules_url]}}
    run_trainer(
        recipe("order", rewards={"services": services, "columns": {"color": color, "small": small}}, max_steps=1)
    )
    again = recipe("order", rewards={"services": services, "columns": {"small": small, "color": color}}, max_steps=2)
    done = run_trainer(again, expect=2)
    assert "rewards.columns were color, small, now small, color" in done.stderr
    assert "Traceback" not in done.stderr
