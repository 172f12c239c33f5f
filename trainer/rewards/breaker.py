"""A circuit breaker for one URL."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal


class CircuitBreaker:
    """Opens after `failures` failures in a row; after `reset_s` it lets one trial through (half-open).

    The trial's success closes it, its failure opens it for another `reset_s`. Not thread-safe: one event loop owns it.
    """

    def __init__(self, failures: int, reset_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._reset_s = reset_s
        self._clock = clock
        self._in_a_row = 0
        self._opened_at: float | None = None
        self._trial = False

    @property
    def state(self) -> Literal["closed", "open", "half_open"]:
        if self._opened_at is None:
            return "closed"
        return "half_open" if self._trial or self.retry_in() == 0 else "open"

    def retry_in(self) -> float:
        """Seconds until a request may pass; 0 when one may now."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + self._reset_s - self._clock())

    def would_allow(self) -> bool:
        """Whether `acquire` would let a request pass."""
        return self._opened_at is None or (not self._trial and self.retry_in() == 0)

    def acquire(self) -> None:
        """A request passes; half-open, it is the trial. Every acquire ends in success, failure or release."""
        assert self.would_allow()
        self._trial = self._opened_at is not None

    def success(self) -> None:
        self.reset()

    def failure(self) -> bool:
        """Count a failure. True when this one opened a closed breaker."""
        self._in_a_row += 1
        was_closed = self._opened_at is None
        if self._trial or self._in_a_row >= self._limit:
            self._opened_at = self._clock()
        self._trial = False
        return was_closed and self._opened_at is not None

    def release(self) -> None:
        """The request ended without saying anything about the URL (it was cancelled)."""
        self._trial = False

    def reset(self) -> None:
        """Close: the URL is known to work."""
        self._in_a_row = 0
        self._opened_at = None
        self._trial = False
