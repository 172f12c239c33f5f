"""Work that is repeated as long as the process lives. A turn that fails is logged, and the next one follows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger("services.loops")

_AGAIN_S = 0.2  # after a turn that failed
_CANCEL_AGAIN_S = 0.1


class Loop:
    """Calls `turn` again and again, in a task of its own. What it raises is logged and kept in `failure`."""

    def __init__(
        self,
        name: str,
        turn: Callable[[], Awaitable[None]],
        *,
        pause_s: float = 0.0,
        said_elsewhere: tuple[type[Exception], ...] = (),
        goes_on: Callable[[], bool] = lambda: True,
        last: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`pause_s`: before each turn. `said_elsewhere`: what a turn may raise that is no failure of the loop's own.

        `goes_on`: asked before each turn; once it says no, `last` is called and the loop is over.
        """
        self._name = name
        self._turn = turn
        self._pause_s = pause_s
        self._said_elsewhere = said_elsewhere
        self._goes_on = goes_on
        self._last = last
        self._reason: str | None = None
        self._ending = False
        self._task: asyncio.Task[None] | None = None

    @property
    def failure(self) -> str | None:
        """Why the last turn failed, or that there will be no more turns though there should; None when all is well."""
        if self._task is not None and self._task.done() and not self._ending and self._goes_on():
            return f"{self._name} has ended: {self._reason or 'it was cancelled'}; start the service again"
        return self._reason

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task, once started."""
        return self._task

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def end(self) -> None:
        """Stop, also in the middle of a turn."""
        self._ending = True
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        while self._goes_on():
            try:
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)
                await self._turn()
                self._reason = None
                continue
            except asyncio.CancelledError:
                if self._ending or not self._was_cancelled_by_mistake():
                    raise
                self._note("a turn was cancelled by what it called")
            except self._said_elsewhere as error:
                logger.debug("a turn failed", extra={"loop": self._name, "reason": str(error)})
            except Exception as error:  # whatever it is, the next turn may succeed, and nobody else would begin it
                self._note(f"{type(error).__name__}: {error}", error)
            await asyncio.sleep(_AGAIN_S)
        if self._last is not None:
            await self._last()

    def _was_cancelled_by_mistake(self) -> bool:
        """Whether nobody cancelled this task: the exception comes from something that was awaited."""
        task = asyncio.current_task()
        return task is not None and task.cancelling() == 0

    def _note(self, reason: str, error: BaseException | None = None) -> None:
        reason = f"{self._name} failed: {reason}"
        if reason != self._reason:  # not five times a second
            logger.error(reason, exc_info=error)
        self._reason = reason


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended.

    Once may not do: the Redis client sends within `asyncio.wait_for`, which before Python 3.12 forgets a cancellation
    that comes in the moment the sending is done.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_AGAIN_S)
