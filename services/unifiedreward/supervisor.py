"""Keeps a child process running: starts it again when it ends, ever later when it ends at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

logger = logging.getLogger("services.supervisor")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_HEALTHY_S = 300.0  # a process that ran that long starts anew with the first pause
_GRACE_S = 30.0


class Supervisor:
    """A context: inside it the command runs, in a process group of its own; at the end the group is stopped.

    Its output goes where this process's errors go. `grace_s` after SIGTERM the group is killed.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], first_pause_s: float = _FIRST_PAUSE_S
    ) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._first_pause_s = first_pause_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def __enter__(self) -> Self:
        """Raises OSError when the command cannot be started at all."""
        self._process = self._start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._process is not None:
            _signal(self._process, signal.SIGTERM)
        self._thread.join(timeout=_GRACE_S)
        if self._process is not None:
            _signal(self._process, signal.SIGKILL)  # what is left of the group
        self._thread.join(timeout=5)

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        logger.info("starting", extra={"command": self._command[0], "starts": self.starts})
        return subprocess.Popen(self._command, env=self._environment, stdout=2, start_new_session=True)

    def _run(self) -> None:
        pause = self._first_pause_s
        while True:
            assert self._process is not None
            began = time.monotonic()
            code = self._process.wait()
            if self._stopping.is_set():
                return
            _signal(self._process, signal.SIGKILL)  # its children keep GPUs and the port
            pause = self._first_pause_s if time.monotonic() - began > _HEALTHY_S else pause
            logger.error("ended", extra={"command": self._command[0], "exit_code": code, "restart_in_s": pause})
            again = self._start_again(pause)
            if again is None:
                return
            pause = again
            if self._stopping.is_set():  # it came while this one was starting
                _signal(self._process, signal.SIGTERM)

    def _start_again(self, pause: float) -> float | None:
        """Start after the pause; the next pause, or None when there is to be no start any more."""
        while not self._stopping.wait(pause):
            pause = min(_LONGEST_PAUSE_S, 2 * pause)
            try:
                self._process = self._start()
                return pause
            except OSError:  # no memory, no process ids, a file system that is away: it may pass
                logger.exception("the command cannot be started again", extra={"next_try_in_s": pause})
        return None


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
