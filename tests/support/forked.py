"""Trainers as processes of their own that need not import torch first: each is forked from one process that has.

So are ranks that tests run without a trainer (`run_ranks`).

A start of `python -m trainer train` imports torch and diffusers for some eight seconds of processor time, runs a
small recipe for two and draws its report for three. Whole runs that are about what is trained, saved and taken up again
start here, and leave the page's drawings out; those that are about the command itself start it as a person does.

Run as `python -m tests.support.forked`, this module is the process that forks: it reads one request a line and answers each
with one line. A forked trainer has an empty standard input and its output in files; of several ranks, its process is what
torchrun's would be: it serves the store, and ends with 1 when a rank fails.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
TRAINER = "trainer.__main__"
_POLL_S = 0.01
_RANKS_S = 300.0  # against a hang; nothing is timed
_LAST_S = 60.0  # for the ranks that are left when one has failed


class ForkedTrainer:
    """A running trainer, with what tests use of subprocess.Popen."""

    def __init__(
        self,
        argv: Sequence[str],
        output: Path,
        environment: dict[str, str],
        ranks: int = 1,
        module: str = TRAINER,
        terminal: str | None = None,
    ) -> None:
        """`module`: what is run, a module with a `main(argv)` that returns the exit code. `terminal`: the path of the terminal
        that the process belongs to and writes to, instead of files."""
        self.args = list(argv)
        self.returncode: int | None = None
        self._output = output
        request = {"argv": self.args, "environment": environment, "output": str(output), "ranks": ranks}
        request |= {"module": module, "terminal": terminal}
        self.pid = int(_ask({"start": request}))

    def poll(self) -> int | None:
        """The exit code (of a signal, its negative number), or None while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Raises subprocess.TimeoutExpired."""
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(_POLL_S)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def stdout(self) -> str:
        """All it has written so far."""
        return Path(f"{self._output}.out").read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return Path(f"{self._output}.err").read_text(encoding="utf-8")

    def __enter__(self) -> ForkedTrainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait(_LAST_S)


def run_ranks(module: str, *argv: str, ranks: int, output: Path) -> None:
    """Run a module's `main(argv)` on each of `ranks` processes, as torchrun starts them, and check that none failed.

    `output`: where what they print is kept, without an ending.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with ForkedTrainer(argv, output, environment, ranks, module) as processes:
        code = processes.wait(_RANKS_S)
    assert code == 0, processes.stderr[-4000:]


@cache
def _forker() -> subprocess.Popen[str]:
    """The process that forks, one for this whole session; it ends with its standard input."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forked"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.communicate()


def _ask(question: dict[str, Any]) -> Any:
    forker = _forker()
    assert forker.stdin is not None and forker.stdout is not None
    forker.stdin.write(json.dumps(question) + "\n")
    forker.stdin.flush()
    answer = forker.stdout.readline()
    assert answer, f"the process that forks has ended with {forker.wait()}"
    return json.loads(answer)


# --- in the process that forks ---


def _import_all() -> None:
    import trainer.__main__
    import trainer.commands.train
    import trainer.loop
    import trainer.policies.flow.tiny
    import trainer.report.page  # noqa: F401


def _serve() -> None:
    """Answer requests until there are no more. Returns in the forked processes only by SystemExit."""
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            pid = os.fork()
            if pid == 0:
                _become_trainer(**question["start"])
            answer: Any = pid
        else:
            found, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if found else None
        print(json.dumps(answer), flush=True)


def _become_trainer(
    argv: list[str], environment: dict[str, str], output: str, ranks: int, module: str, terminal: str | None
) -> NoReturn:
    _take_streams(output, terminal)
    _end_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    main: Callable[[list[str]], int] = import_module(module).main
    if ranks > 1:
        _become_ranks(main, argv, ranks)
    sys.exit(main(argv))


def _take_streams(output: str, terminal: str | None) -> None:
    if terminal is not None:
        os.setsid()  # the first terminal that a session's leader opens is the one it belongs to
        number = os.open(terminal, os.O_RDWR)
        for stream in range(3):
            os.dup2(number, stream)
        os.close(number)
        return
    with (
        open(os.devnull, "rb") as nothing,
        open(f"{output}.out", "wb", 0) as out,
        open(f"{output}.err", "wb", 0) as errors,
    ):
        for file, number in ((nothing, 0), (out, 1), (errors, 2)):
            os.dup2(file.fileno(), number)


def _end_with_parent() -> None:
    """A session that is killed leaves no trainer behind, and a launcher no rank."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _become_ranks(main: Callable[[list[str]], int], argv: list[str], ranks: int) -> NoReturn:
    """Fork one process a rank, with torchrun's variables, and serve their store."""
    port = free_port()
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "forked", "TORCHELASTIC_RESTART_COUNT": 0}
    os.environ.update({name: str(value) for name, value in shared.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
    running = set()
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            _end_with_parent()
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            sys.exit(main(argv))
        running.add(pid)

    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=_LAST_S))
    failed = False
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if status != 0 and not failed:
            failed = True
            signal.signal(signal.SIGALRM, lambda *_: [_kill(left) for left in running])
            signal.alarm(int(_LAST_S))
    del store
    sys.exit(int(failed))


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    try:
        _import_all()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    _serve()
