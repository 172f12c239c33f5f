"""So many calls at a time, first come, first served: a group that came first gets every free slot until it has enough."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class Slots:
    """Room for `count` calls. Waiting for one and giving up cost the same however many others wait."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[
            tuple[int, int, asyncio.Future[None]]
        ] = []  # a heap; those who gave up stay until their turn
        self._tickets = itertools.count()
        self._numbers = itertools.count()

    def ticket(self) -> int:
        """A place in the line, to be kept by who takes several slots one after another."""
        return next(self._tickets)

    async def acquire(self, ticket: int) -> None:
        """Wait for a slot; give it back with `release`."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (ticket, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # both at once: the slot was given to who has just left
                self.release()
            raise

    def release(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
