"""This client's own queue and its own slowness: neither may count against a service."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

_T = TypeVar("_T")
_LOOK_S = 1.0  # how often the queue is looked through
_PUNCTUAL_S = 0.002  # a timer is never exact
_TICK_S = 0.01  # how often the event loop is asked whether it is there


class SlotQueue:
    """At most `slots` holders at a time, the others in order. Lives on one event loop.

    Args:
        why_leave: asked now and then, with the moment since which someone waits: an error ends that wait.
    """

    def __init__(self, slots: int, why_leave: Callable[[float], Exception | None]) -> None:
        self._free = slots
        self._why_leave = why_leave
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._watch: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it inside the block. Raises what `why_leave` gives."""
        await self._acquire()
        try:
            yield
        finally:
            self._release()

    async def _acquire(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((time.monotonic(), turn))
        if self._watch is None or self._watch.done():
            self._watch = asyncio.ensure_future(self._look())
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._release()  # the turn came at the same moment
            raise

    def _release(self) -> None:
        while self._waiting:
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def _look(self) -> None:
        while self._waiting:
            await asyncio.sleep(_LOOK_S)
            for since, turn in self._waiting:
                error = None if turn.done() else self._why_leave(since)
                if error is not None:
                    turn.set_exception(error)


class LoopClock:
    """A clock that stands still while this event loop is too busy to look at its connections.

    An answer that lies in a socket meanwhile is in time. Where thousands of requests are prepared at once, or other
    threads take the processor, that would otherwise look like a service that is late. Lives on one event loop.
    """

    def __init__(self) -> None:
        self._lost_s = 0.0
        self._looked_at = 0.0
        self._users = 0
        self._ticker: asyncio.Task[None] | None = None

    def now(self) -> float:
        """Seconds in which the loop was there, from some moment on."""
        return time.monotonic() - self.lost_s

    @property
    def lost_s(self) -> float:
        """Seconds in which it was not, while anybody watched."""
        return self._lost_s + (self._overdue() if self._ticker is not None else 0.0)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the loop inside the block."""
        self._users += 1
        if self._ticker is None:
            self._looked_at = time.monotonic()
            self._ticker = asyncio.ensure_future(self._tick())
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0:
                self._lost_s = self.lost_s
                self._ticker.cancel()
                self._ticker = None

    async def within(self, seconds: float, work: Awaitable[_T]) -> _T:
        """The result of `work`. Raises TimeoutError after so many seconds of this clock; the work is cancelled then."""
        task = asyncio.ensure_future(work)
        with self.watched():
            end = self.now() + seconds
            try:
                while not task.done():
                    left_s = end - self.now()
                    if left_s <= 0:
                        raise TimeoutError
                    await asyncio.wait({task}, timeout=left_s)
                return task.result()
            finally:
                if not task.done():
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._lost_s += self._overdue()
            self._looked_at = time.monotonic()

    def _overdue(self) -> float:
        return max(0.0, time.monotonic() - self._looked_at - _TICK_S - _PUNCTUAL_S)
