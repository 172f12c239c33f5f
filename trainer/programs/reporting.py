"""`report.html` beside a run that goes on: another process builds it, one at a time, for a bounded share of the run's time."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from trainer.processes.children import Child, environment

SHARE = 0.02  # of one core, over the whole run: what pages of a run that goes on may cost
COMMAND = (sys.executable, "-m", "trainer", "report")  # and the run's folder
_LOG = Path("logs", "report.log")  # in the run's folder
_LEFT = ".report.html.*.writing"  # what a process leaves that is ended while it writes the page (`write_atomic`)


class ReportBuilder:
    """Builds the page of a run while its steps are made, and the last one when they are. A context manager.

    Pages in between come from `python -m trainer report`, politely (nice 19), which reads what is in the folder and nothing of
    this process: the training never waits for one, and what becomes of it ends no run. A page is begun once the last one's
    CPU seconds are at most `SHARE` of the time since it was begun, so that a run that grows long rebuilds it more seldom.

    Args:
        run_dir: the run's folder.
        note: takes a sentence about a page that was not built.
        is_main: False on all ranks but one, where nothing is done.
    """

    def __init__(self, run_dir: Path, note: Callable[[str], None], *, is_main: bool) -> None:
        self._run_dir, self._note, self._is_main = run_dir, note, is_main
        self._child = Child(run_dir / _LOG, nice=19)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._began_at, self._cost_s = -math.inf, 0.0

    @property
    def is_building(self) -> bool:
        """Whether a page is being built beside the run."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self) -> None:
        """Begin to build the page, unless one is being built, or the last one was too dear for another so soon."""
        if not self._is_main or self.is_building or (time.monotonic() - self._began_at) * SHARE < self._cost_s:
            return
        self._began_at = time.monotonic()
        self._thread = threading.Thread(target=self._build, name="report", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Build the last page, here: it is there when this returns."""
        if not self._is_main:
            return
        self.stop()
        from trainer.report import build_report  # which a run needs but at its end

        try:
            build_report(self._run_dir)
        except Exception as error:  # a page that cannot be built never costs a run
            self._failed(f"{type(error).__name__}: {error}")

    def stop(self) -> None:
        """End what is being built: a page of fewer rows must not take the place of the last one."""
        self._stopping.set()
        if self._thread is not None:
            self._child.terminate()
            self._thread.join()
            self._thread = None
            for left in self._run_dir.glob(_LEFT):
                left.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _build(self) -> None:
        """In a thread of its own, which does nothing but wait."""
        before = _cpu_of_children()
        try:
            self._child.spawn([*COMMAND, str(self._run_dir)], environment())
            code = self._child.reap()
        except OSError as error:  # no memory, no process ids, no space for its log
            self._failed(str(error))
            return
        self._cost_s = _cpu_of_children() - before  # with what else ended meanwhile: never too little
        if code and not self._stopping.is_set():
            self._failed(f"exit code {code}\n{self._child.tail(3)}")

    def _failed(self, why: str) -> None:
        self._note(f"report.html was not built ({why}); nothing else is affected")


def _cpu_of_children() -> float:
    """CPU seconds of all processes that this one started and that have ended, with theirs."""
    times = os.times()
    return times.children_user + times.children_system
