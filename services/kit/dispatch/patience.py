"""How long a pool of worker processes waits: for an answer, and between two starts that fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

_ASK_S = 0.5  # between two looks whether anyone still waits
_MIN_PAUSE_S, _MAX_PAUSE_S = 1.0, 60.0


class WorkerDied(RuntimeError):
    """The process ended, or did not answer in time, while it had work."""


class NobodyWaits(WorkerDied):
    """The process was busy with what nobody waits for any more."""


class StartFailed(RuntimeError):
    """A process did not come up; the message says why."""


def always() -> bool:
    return True


class Patience:
    """How long an answer is waited for: `timeout_s`, or `abandoned_s` from when nobody waits for any of its items."""

    def __init__(self, awaited: Sequence[Callable[[], bool]], timeout_s: float, abandoned_s: float) -> None:
        self.timeout_s = timeout_s
        self._awaited = awaited
        self._abandoned_s = abandoned_s
        self._until = time.monotonic() + timeout_s
        self._abandoned_since: float | None = None

    def left_s(self) -> float:
        """Seconds until it is worth asking again; 0 when the time is over. Raises NobodyWaits."""
        now = time.monotonic()
        if any(is_awaited() for is_awaited in self._awaited):
            self._abandoned_since = None
        else:
            self._abandoned_since = now if self._abandoned_since is None else self._abandoned_since
            if now - self._abandoned_since >= self._abandoned_s:
                raise NobodyWaits(f"nobody has waited for {self._abandoned_s:g} s")
        return max(0.0, min(_ASK_S, self._until - now))


class Backoff:
    """Pauses between failed starts: 1 s at first, doubled each time up to 60 s. Without, every batch would load."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._pause_s = 0.0
        self._until = 0.0
        self._lock = threading.Lock()

    @property
    def left_s(self) -> float:
        """Seconds until the next start is allowed."""
        return max(0.0, self._until - time.monotonic())

    def check(self) -> None:
        """Raise StartFailed while the pause lasts."""
        with self._lock:
            if self.left_s > 0:
                raise StartFailed(f"{self.reason} (next try in {self.left_s:.0f} s)")

    def failed(self, reason: str) -> None:
        with self._lock:
            self.reason = reason
            if self.left_s == 0:  # workers that fail together count once
                self._pause_s = min(_MAX_PAUSE_S, max(_MIN_PAUSE_S, 2 * self._pause_s))
                self._until = time.monotonic() + self._pause_s

    def succeeded(self) -> None:
        with self._lock:
            self.reason, self._pause_s, self._until = None, 0.0, 0.0
