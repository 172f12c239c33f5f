"""A command that this process starts, watches and ends. It does not outlive this process, not even one killed by SIGKILL."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rewards.shipped import FOLDER

ROOT = Path(__file__).resolve().parents[2]  # has our packages
# What a Python that is started needs on PYTHONPATH to find them: the checkout. An installed one finds them as this one does; its
# folder has all other packages, too, and would put them before those of another environment, such as vLLM's.
OURS = (str(ROOT),) if FOLDER == ROOT else ()
# And an installed program starts what is installed, not a folder of the same name where the command was typed, such as a checkout
# of another version: `python -m` would look there first.
SAFE_PATH = {} if OURS else {"PYTHONSAFEPATH": "1"}
_GRACE_S = 5.0
_LOG_LINES = 15
# Variables by which ranks know each other: a program that is no rank of theirs must not join them.
_OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment() -> dict[str, str]:
    """The environment of a Python that runs a program of ours, on its own."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
    path = os.pathsep.join(filter(None, [*OURS, os.environ.get("PYTHONPATH")]))
    return kept | SAFE_PATH | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


class Child:
    """One command, started as often as is wanted, with its output in a file.

    It runs under a small process of its own (`child.py`), which ends it when this process is gone.

    Args:
        log_path: takes what it writes, one start after the other.
        nice: its politeness; 19 leaves the CPU to others.
    """

    def __init__(self, log_path: Path, *, nice: int = 0) -> None:
        self.log_path, self._nice = log_path, nice
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def spawn(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the command in its own process group.

        Args:
            env: all of its environment.
        """
        supervisor = [sys.executable, "-I", str(Path(__file__).with_name("child.py"))]
        limits = [str(os.getpid()), str(_GRACE_S), str(self._nice), "--"]
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*supervisor, *limits, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def written(self) -> bytes:
        """What the last start wrote."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read()

    def tail(self, lines: int = _LOG_LINES) -> str:
        """The end of what the last start wrote."""
        text = self.written()[-20_000:].decode("utf-8", "replace")
        return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (it wrote nothing)"

    def terminate(self) -> None:
        """Ask it to end; the whole group is killed when it has not after a few seconds."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        """Wait for the end that was asked for."""
        if self._process is None:
            return
        try:
            self._process.wait(_GRACE_S + 5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.reap()

    def reap(self) -> int:
        """Wait for the end of a command, and take its status."""
        assert self._process is not None
        return self._process.wait()
