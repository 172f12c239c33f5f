"""A rank that fails or dies ends all ranks within seconds, with one message and its exit code.

The ranks are real processes that torchrun or the launcher starts; each runs the few lines of `RANK` with a Watch.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.config import ConfigError
from trainer.processes.failure import FAILED, LOST, USER_ERROR, Watch, describe, is_lost_connection
from trainer.processes.launch import End, build_parser, processes_left, set_threads
from trainer.records.reporters.installed import check_installed

ROOT = Path(__file__).resolve().parents[2]

# Rank 1 does as it is told once both are watched; rank 0 waits in a way that no signal handler and no exception can end.
RANK = """
import os, signal, sys, time
from pathlib import Path
from trainer.processes import failure
from trainer.processes.failure import USER_ERROR, Watch, describe

rank, place = int(os.environ["RANK"]), Path({place!r})
signal.signal(signal.SIGTERM, lambda *_: None)

def wait_for(name):
    while not (place / name).exists():
        time.sleep(0.01)

def be_heard():
    '''Until this rank's watch has reached the store: one that leaves before has nothing to say there.'''
    while watch._store is None:
        time.sleep(0.01)

def see_it_done():
    '''Rank 1 has left, and this rank's watch finds that three times, each of which would be too late for a lost one.'''
    seen, look = [], watch._look_at
    watch._look_at = lambda neighbour: seen.append(look(neighbour)) or seen[-1]
    wait_for("left.1")
    failure.LOST_AFTER_S = 0.0
    while seen.count(b"done") < 3:
        time.sleep(0.01)

{before}
with Watch() as watch:
    (place / f"in.{{rank}}").touch()
    wait_for("in.0"), wait_for("in.1")
    try:
        if rank == 1:
            print("at", time.monotonic(), flush=True)
            {act}
        else:
            {other}
    except ValueError as error:
        sys.exit(watch.fail(f"error: {{error}}", USER_ERROR))
    except Exception as error:
        sys.exit(watch.fail(*describe(error)))
(place / f"left.{{rank}}").touch()
print("finished", rank, flush=True)
"""


def run(
    tmp_path: Path, act: str, *, other: str = "time.sleep(600)", before: str = ""
) -> tuple[subprocess.CompletedProcess[str], float]:
    """What came out, and the seconds from rank 1's act to the end of all."""
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(act=act, other=other, before=before, place=str(tmp_path)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    ended = time.monotonic()
    _, _, at = done.stdout.partition("at ")
    return done, ended - float(at.split()[0])


def test_an_error_of_one_rank_ends_the_others_at_once_and_they_leave_their_flight_records(tmp_path: Path) -> None:
    """Also where the main thread waits for ever: rank 0 sleeps."""
    script = f"""
from pathlib import Path
import torch
from trainer.processes.distributed import World
from trainer.records.flight.recorder import FlightRecorder
world = World(int(os.environ["RANK"]), 2, torch.device("cpu"))
flight = FlightRecorder(Path({str(tmp_path)!r}), world, print).on_crash()
flight.__enter__()
"""
    done, seconds = run(tmp_path, 'raise ValueError("optim.lr = 3 is too high; lower it")', before=script)
    assert done.stderr.count("error: optim.lr = 3 is too high; lower it\n(rank 1 of 2 on ") == 1
    assert "exitcode  : 2" in done.stderr and "finished" not in done.stdout
    assert seconds < 25  # torchrun alone waits 30 s for rank 0 and then kills it
    error = json.loads((tmp_path / "flight" / "step_000000.json").read_text())["error"]
    assert error["type"] == "OtherRankError" and error["message"].startswith("rank 1 of 2 on ")
    assert error["message"].endswith("failed: error: optim.lr = 3 is too high; lower it")


@pytest.mark.slow
def test_a_defect_shows_one_traceback(tmp_path: Path) -> None:
    done, _ = run(tmp_path, '{}["missing"]')
    assert done.stderr.count("KeyError: 'missing'") == 1


@pytest.mark.slow
def test_ranks_that_finish_at_different_times_are_not_lost(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "be_heard()", other="see_it_done()")
    assert done.returncode == 0, done.stderr
    assert {"finished 0", "finished 1"} <= set(done.stdout.split("\n"))


def test_a_process_alone_just_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    with Watch({}) as watch:
        assert watch.fail("error: no file", USER_ERROR) == USER_ERROR
    assert capsys.readouterr().err == "error: no file\n"


@pytest.mark.parametrize(
    "message",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242",
        "Connection reset by peer",
    ],
)
def test_a_broken_connection_is_no_cause(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank that was killed is the cause; a start may work again."""
    assert is_lost_connection(RuntimeError(message))
    assert describe(RuntimeError(message))[1] == FAILED  # alone, it is about something else
    monkeypatch.setenv("WORLD_SIZE", "2")
    text, code = describe(RuntimeError(message))
    assert code == LOST and "Traceback" not in text
    assert describe(RuntimeError("shapes differ"))[1] == FAILED


def test_a_package_that_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the client was installed; where torch is there, a missing module is a defect, with its traceback."""
    error = ModuleNotFoundError("No module named 'starlette'", name="starlette")
    assert describe(error)[1] == FAILED
    for module in ("trainer.processes.failure", "trainer.records.reporters.installed"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    text, code = describe(error)
    assert code == USER_ERROR and text.startswith(
        "error: this needs the package starlette, which is not installed: pip install"
    )
    with pytest.raises(
        ConfigError, match=r"tensorboard, which is not installed: pip install 'rewards-as-services\[train\]'"
    ):
        check_installed(["wandb", "tensorboard"])


def test_only_a_killed_or_lost_process_is_started_again() -> None:
    assert End(137, rank=3, signal=9).may_work_again and End(LOST).may_work_again
    assert not any(End(code).may_work_again for code in (0, FAILED, USER_ERROR))
    assert str(End(137, rank=3, signal=9)) == "Rank 3 was ended by SIGKILL. Was the node out of memory?"


def test_a_new_start_has_as_many_processes_as_fit() -> None:
    args = argparse.Namespace(
        nnodes=1, node_rank=0, command=["train", "configs/quickstart.yaml", "sampling.prompts_per_step=12"]
    )
    assert processes_left(8, args, devices=None) == 8  # a CPU
    assert processes_left(8, args, devices=8) == 8
    assert processes_left(8, args, devices=5) == 4  # 12 prompts a step divide by 4, not by 5
    with pytest.raises(ConfigError, match="0 of 8 devices are left"):
        processes_left(8, args, devices=0)
    args.nnodes = 2
    with pytest.raises(ConfigError, match="5 of 8 devices are left on node 0; repair it"):
        processes_left(8, args, devices=5)


# The launcher, with a worker that is killed at once in place of `-m trainer`.
LAUNCHER = """
import sys
from torch.distributed import run
from trainer.processes import launch

launch.PAUSE_S = 600.0
real = run.parse_args
run.parse_args = lambda arguments: real([*arguments[: arguments.index("-m")], sys.argv[1]])
launch._devices = lambda: None
sys.exit(launch.main(["--nproc", "1", "train", "configs/quickstart.yaml"]))
"""


def test_sigterm_between_two_starts_is_an_ordinary_end(tmp_path: Path) -> None:
    """Everything is saved then: a preemption in these seconds must not look like a failure."""
    launcher, worker = tmp_path / "launcher.py", tmp_path / "worker.py"
    launcher.write_text(LAUNCHER, encoding="utf-8")
    worker.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(launcher), str(worker)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        told = ""
        while "Starting again" not in told:
            line = process.stderr.readline()
            assert line, f"the launcher ended: {told}"
            told += line
        process.send_signal(signal.SIGTERM)
        told += process.stderr.read()
    assert process.returncode == 0, told
    assert "Traceback" not in told


@pytest.mark.parametrize(("offload", "threads"), [("none", 1), ("cpu", 3)])
def test_an_optimizer_on_the_cpu_gets_the_cores_of_its_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], offload: str, threads: int
) -> None:
    file = tmp_path / "zero.json"
    zero = {"stage": 2, "offload_optimizer": {"device": offload}}
    file.write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(7)))
    monkeypatch.setenv("OMP_NUM_THREADS", "9")  # so that it is put back
    monkeypatch.delenv("OMP_NUM_THREADS")
    args = build_parser().parse_args(["--nproc", "2", "train", "quickstart", f"distributed.deepspeed={file}"])
    set_threads(args, 2)
    assert os.environ["OMP_NUM_THREADS"] == str(threads)
    assert (f"{threads} threads for each of 2 processes" in capsys.readouterr().err) == (offload == "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    set_threads(args, 2)
    assert os.environ["OMP_NUM_THREADS"] == "5", "what was said counts"
