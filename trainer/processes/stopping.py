"""Signals that end a run: what was trained is saved first; before anything was trained, all is taken down at once.

SIGTERM comes from `kill`, schedulers and containers, SIGINT from Ctrl-C, SIGHUP from a terminal that is closed, SIGUSR1,
SIGUSR2 and SIGXCPU from batch systems that warn of a time limit. This module imports nothing large, so that the signals
are heard from the first moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)


class StartStoppedError(BaseException):
    """A signal came before training began. It is no Exception, so that what handles errors on the way lets it pass."""


class StopSignals:
    """Hears the signals while it is entered; the main thread's own. What was there before is put back at the end.

    Until `training`, a signal raises StartStoppedError wherever the main thread is (the first Ctrl-C KeyboardInterrupt).
    From then on it is noted in `asked`, and the loop acts upon it; a second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}
        self._act: Callable[[], None] | None = None
        self._says = False
        self._name = ""

    def __enter__(self) -> Self:
        self._before = install(dict.fromkeys(STOP_SIGNALS, self._hear))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def training(self, act: Callable[[], None], *, says: bool) -> None:
        """From now on there is something to save.

        Args:
            act: called when a signal comes, in the middle of anything: ends waits.
            says: whether this process says that it saves.

        Raises:
            StartStoppedError: a signal came before, and what it raised was lost on the way.
        """
        if self.asked:
            raise StartStoppedError(self._stopped())
        self._act, self._says = act, says

    def _hear(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        self._name = signal.Signals(number).name
        if number == signal.SIGINT and (again or self._act is None):
            raise KeyboardInterrupt
        if self._act is None:
            if not again:
                raise StartStoppedError(self._stopped())
            return  # it is on its way out
        self._act()
        if self._says and not again:
            say(f"{self._name}: saving after this step, or before it where its rewards are late")

    def _stopped(self) -> str:
        return f"{self._name}: stopped before training began; the same command starts it again"


def install(handlers: Mapping[int, Callable[[int, FrameType | None], None]]) -> dict[int, Any]:
    """Put handlers in their places; returns what was there. SIGHUP that is ignored stays so: `nohup` asked for that."""
    before = {}
    for number, handler in handlers.items():
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue
        before[number] = signal.signal(number, handler)
    return before


def say(text: str) -> None:
    """Write to standard error from a signal handler: not by print, since the signal may have come in the middle of one.
    On a terminal it takes the place of the progress bar and the lines below. Where the terminal is gone, nobody reads it."""
    clear = "\r\x1b[J" if os.isatty(2) else "\n"
    with contextlib.suppress(OSError):
        os.write(2, f"{clear}{text}\n".encode())
