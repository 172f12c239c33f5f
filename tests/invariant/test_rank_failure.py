"""Runs on two ranks that trainer.processes.launch starts: what one rank cannot do is said once, and a killed rank is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.compare_runs import final_weights
from tests.support.ports import free_port
from tests.support.trainer_runs import ROOT, read_metrics, run_trainer, trainer_environment


def launch(config: Path, *overrides: str, restarts: int = 1) -> list[str]:
    launcher = [sys.executable, "-m", "trainer.processes.launch", "--nproc", "2", "--max-restarts", str(restarts)]
    return [*launcher, "train", str(config), *overrides]


def rank_pid(launcher: int, rank: int) -> int:
    """The process that the launcher started with this rank."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
            return int(pid)
    raise AssertionError(f"no child of {launcher} has RANK={rank}")


@pytest.mark.slow
def test_what_does_not_divide_is_said_once_with_both_numbers(recipe: Callable[..., Path]) -> None:
    config = recipe("run", sampling__prompts_per_step=3, sampling__micro_batch_size=4)
    done = subprocess.run(
        launch(config), cwd=ROOT, env=trainer_environment(), capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "prompts_per_step = 3" in done.stderr and "2 ranks" in done.stderr
    assert "Traceback" not in done.stderr and "ChildFailedError" not in done.stderr


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_which_starts_again_and_ends_the_same(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Rank 0 is killed, with the services it started; the second start brings its own."""
    local = ["rewards.launch=local", "rewards.services.rules={module: rules}"]
    run_dir, whole = tmp_path / "outputs" / "run", tmp_path / "outputs" / "whole"
    with subprocess.Popen(
        launch(recipe("run"), *local), cwd=ROOT, env=trainer_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_checkpoint(run_dir, process)
        os.kill(rank_pid(process.pid, 0), signal.SIGKILL)
        _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert errors.count("[launch] Rank 0 was ended by SIGKILL. Was the node out of memory?") == 1
    assert "[launch] Starting again with 2 processes" in errors and "Traceback" not in errors
    run_trainer(recipe("whole"), *local, ranks=2)
    assert torch.equal(final_weights(run_dir), final_weights(whole))
    assert read_metrics(run_dir) == read_metrics(whole)


def wait_for_checkpoint(run_dir: Path, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not list((run_dir / "checkpoints").glob("step_*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
def test_two_nodes_meet_again_after_one_lost_its_rank(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Two launchers on one machine, as on two nodes. Node 1's rank is killed; node 0's learns of it and starts again, too."""
    config, run_dir = recipe("run"), tmp_path / "outputs" / "run"
    place = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    nodes = []
    for number in range(2):
        command = [sys.executable, "-m", "trainer.processes.launch", "--nproc", "1", *place, "--node-rank", str(number)]
        output = (tmp_path / f"node{number}").open("w")
        nodes.append(
            subprocess.Popen([*command, "train", str(config)], cwd=ROOT, env=trainer_environment(), stderr=output)
        )
        output.close()
    wait_for_checkpoint(run_dir, nodes[0])
    os.kill(rank_pid(nodes[1].pid, 1), signal.SIGKILL)
    assert [node.wait(timeout=240) for node in nodes] == [0, 0]
    said = [(tmp_path / f"node{number}").read_text(encoding="utf-8") for number in range(2)]
    assert "[launch] Another node lost a process." in said[0]
    assert "[launch] Rank 1 was ended by SIGKILL." in said[1]
    assert read_metrics(run_dir)[-1]["step"] == 4
