"""Things to send that nobody waits for: put in one by one, sent many at a time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from services.kit.dispatch.loops import end

logger = logging.getLogger("services.redis")
T = TypeVar("T")


class Outbox(Generic[T]):
    """Calls `send` with up to `most` things, in the order they were put in, never twice at a time.

    What `send` raises is a bug; `give_up` is told, so that the things it was about are not waited for.
    """

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[None]],
        most: int,
        give_up: Callable[[list[T], Exception], None],
    ) -> None:
        self._send = send
        self._most = most
        self._give_up = give_up
        self._waiting: deque[T] = deque()
        self._task: asyncio.Task[None] | None = None

    def put(self, thing: T) -> None:
        self._waiting.append(thing)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def flush(self, timeout_s: float) -> None:
        """Wait until all is sent, at most `timeout_s`; what is left then is not sent."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout_s)
            await end(self._task)

    async def _run(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            try:
                await self._send(batch)
            except Exception as error:  # a bug must not stop what comes after
                logger.exception("sending to Redis raised", extra={"things": len(batch)})
                self._give_up(batch, error)
