"""Signals to real processes: the terminal that closes, a batch system's warning, one rank or the launcher of several."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import reward_servers
from tests.support.forked import ForkedTrainer
from tests.support.ports import free_port
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.trainer_runs import ROOT, read_metrics, run_trainer, start_trainer, trainer_environment
from trainer.checkpoint import Checkpoint

scripted = reward_servers.scripted  # the fixture
BOUND_S = 300.0


def launch(config: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "trainer.processes.launch", "--nproc", "2", "train", str(config), *overrides]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(reached: Callable[[], Any], process: subprocess.Popen[Any] | ForkedTrainer) -> None:
    deadline = time.monotonic() + BOUND_S
    while not reached():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


class Held:
    """Answers everything but the evaluation after the second step, whose requests wait until `released`."""

    def __init__(self) -> None:
        self.reached, self.released, self.lock, self.seen = threading.Event(), threading.Event(), threading.Lock(), 0

    def __call__(self, request: dict[str, Any]) -> Reply:
        if len(request["items"]) == 4:  # four held-out prompts; training sends eight samples
            with self.lock:
                self.seen += 1
                late = self.seen > 2  # the first evaluation is of two requests
            if late:
                self.reached.set()
                self.released.wait(BOUND_S)
        return good(request, lambda item: (sum(item["id"].encode()) % 17) / 17)


@pytest.fixture
def held(scripted: Callable[..., ScriptedServer]) -> Iterator[tuple[Held, ScriptedServer]]:
    behave = Held()
    yield behave, scripted(behave)
    behave.released.set()


def scored_by(recipe: Callable[..., Path], server: ScriptedServer, name: str = "run", **changes: Any) -> Path:
    rewards = {
        "services": {"svc": {"urls": [server.url], "max_attempts": 1, "timeout_s": BOUND_S}},
        "columns": {"r": {"service": "svc", "canary": "none", "max_failure_rate": 1.0}},
    }
    data = {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"r": 1.0}}]}
    return recipe(name, rewards=rewards, data=data, checkpoint={"save_every": 100}, **changes)


def test_a_terminal_that_closes_saves_the_run(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """As when the ssh connection breaks: the system sends SIGHUP, and whatever is written to the terminal is an error."""
    config, run_dir = recipe("run", max_steps=1000), tmp_path / "outputs" / "run"
    master, slave = pty.openpty()
    with start_trainer(config, terminal=os.ttyname(slave)) as process:

        def first_row() -> bool:
            while select.select([master], [], [], 0.02)[0]:
                os.read(master, 65536)
            return '"step": 1,' in text_of(run_dir / "metrics.jsonl")

        until(first_row, process)
        os.close(slave)
        os.close(master)
        assert process.wait(BOUND_S) == 0
    last = read_metrics(run_dir)[-1]["step"]
    assert (run_dir / "checkpoints" / f"step_{last:06d}").is_dir() and 1 <= last < 1000


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_while_services_are_waited_for_ends_the_start(
    recipe: Callable[..., Path], scripted: Callable[..., ScriptedServer], number: int
) -> None:
    """Nothing was trained, so there is nothing to save; the exit code is that of a run that was asked to stop."""
    server = scripted()
    server.ready = Reply({"status": "loading"}, status=503)
    with start_trainer(scored_by(recipe, server)) as process:
        until(lambda: "/ready" in server.gets, process)
        process.send_signal(number)
        assert process.wait(BOUND_S) == 0, process.stderr
    assert f"{signal.Signals(number).name}: stopped before training began" in process.stderr
    assert "Traceback" not in process.stdout + process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("told", ["launcher", "rank"])
def test_two_ranks_leave_an_evaluation_together(
    recipe: Callable[..., Path], tmp_path: Path, held: tuple[Held, ScriptedServer], told: str
) -> None:
    """SIGUSR1 to the launcher, twice, or SIGHUP to the second rank alone, while the first has the scores to wait for."""
    behave, server = held
    config, run_dir = scored_by(recipe, server), tmp_path / "outputs" / "run"
    with subprocess.Popen(
        launch(config), cwd=ROOT, env=trainer_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        until(behave.reached.is_set, process)
        if told == "launcher":
            process.send_signal(signal.SIGUSR1)
            process.send_signal(signal.SIGTERM)
        else:
            os.kill(rank_pid(process.pid, 1), signal.SIGHUP)
        _, errors = process.communicate(timeout=BOUND_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert [row["step"] for row in read_metrics(run_dir)] == [0, 1, 2]
    assert not any(key.startswith("eval/") for key in read_metrics(run_dir)[-1])
    assert Checkpoint.open(run_dir / "checkpoints" / "step_000002").state["row"]["step"] == 2
    behave.released.set()
    if told == "launcher":
        run_trainer(config, ranks=2)
        run_trainer(scored_by(recipe, server, "whole"), ranks=2)
        assert read_metrics(run_dir) == read_metrics(tmp_path / "outputs" / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("told", ["launcher", "rank"])
def test_two_ranks_end_a_start_together(
    recipe: Callable[..., Path], scripted: Callable[..., ScriptedServer], told: str
) -> None:
    """No rank is taken for lost, and nothing is started again."""
    server = scripted()
    server.ready = Reply({"status": "loading"}, status=503)
    with subprocess.Popen(
        launch(scored_by(recipe, server)), cwd=ROOT, env=trainer_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        until(lambda: "/ready" in server.gets, process)
        ranks = children(process.pid)
        os.kill(process.pid if told == "launcher" else rank_pid(process.pid, 1), signal.SIGHUP)
        _, errors = process.communicate(timeout=BOUND_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors and "Starting again" not in errors
    assert errors.count("SIGHUP: stopped before training began") == 1
    assert len(ranks) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in ranks)


def rank_pid(launcher: int, rank: int) -> int:
    for pid in children(launcher):
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
            return pid
    raise AssertionError(f"no child of {launcher} has RANK={rank}")


@pytest.mark.parametrize(
    "number",
    [signal.SIGUSR1, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGHUP, signal.SIGINT))],
)
def test_a_launcher_without_processes_has_nothing_to_wait_for(tmp_path: Path, number: int) -> None:
    """Here it waits for a node 0 that does not come."""
    place = ["--nnodes", "2", "--node-rank", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    command = [
        sys.executable,
        "-m",
        "trainer.processes.launch",
        "--nproc",
        "1",
        *place,
        "train",
        "configs/quickstart.yaml",
    ]
    with subprocess.Popen(command, cwd=ROOT, env=trainer_environment(), stderr=subprocess.PIPE, text=True) as process:
        until(lambda: catches(process.pid, number), process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=BOUND_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def test_node_0_that_waits_for_others_hears_a_signal(tmp_path: Path) -> None:
    """It waits inside torch, where Python's handlers are not run."""
    port = free_port()
    place = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    command = [
        sys.executable,
        "-m",
        "trainer.processes.launch",
        "--nproc",
        "1",
        *place,
        "train",
        "configs/quickstart.yaml",
    ]
    with subprocess.Popen(command, cwd=ROOT, env=trainer_environment(), stderr=subprocess.PIPE, text=True) as process:
        until(lambda: listens(port), process)
        process.send_signal(signal.SIGTERM)
        try:
            _, errors = process.communicate(timeout=BOUND_S)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, and is past the moment at which it set it."""
    [mask] = re.findall(r"^SigCgt:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1) and "torch" in Path(f"/proc/{pid}/maps").read_text()
