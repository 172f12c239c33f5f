"""How much memory the requests in flight may hold together: their bodies and their decoded images."""

from __future__ import annotations

import threading
from collections.abc import Callable

from services.kit.errors import ApiError, overloaded
from services.kit.metrics import Metrics


class MemoryBudget:
    """A bound on bytes, shared by all requests. Thread-safe."""

    def __init__(self, limit: int, metrics: Metrics, retry_after_s: Callable[[], int]) -> None:
        self.limit = limit
        self.used = 0
        self._metrics = metrics
        self._retry_after_s = retry_after_s
        self._lock = threading.Lock()

    def hold(self) -> Hold:
        """A request's share; empty at first."""
        return Hold(self)

    def _change(self, count: int) -> bool:
        with self._lock:
            if count > 0 and self.used + count > self.limit:
                return False
            self.used += count
            self._metrics.memory_bytes.set(self.used)
            return True


class Hold:
    """What one request holds. Give it back with `release`, also after an error; nothing can be taken afterwards."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._held = 0
        self._released = False
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Hold `count` more bytes. Raises ApiError: 413 when the request alone is too much, 429 when all together are."""
        budget = self._budget
        with self._lock:
            if self._released:  # by the request, which ended while a thread of it goes on: stop that, too
                raise ApiError(503, "the request has ended")
            if self._held + count > budget.limit:
                raise ApiError(
                    413,
                    f"the body and decoded images of this request need more than {budget.limit} bytes, "
                    f"the limit: send fewer items in one request",
                )
            if not budget._change(count):
                raise overloaded(
                    f"requests in flight hold {budget.used} bytes; {count} more would exceed the limit of {budget.limit}",
                    budget._retry_after_s(),
                )
            self._held += count

    def give_back(self, count: int) -> None:
        """Hold `count` bytes less: what was needed for a moment."""
        with self._lock:
            if count and not self._released:
                self._budget._change(-count)
                self._held -= count

    def release(self) -> None:
        with self._lock:
            self._budget._change(-self._held)
            self._held, self._released = 0, True
