"""Tells a request's work whether anyone still waits for the answer. The work asks between two images, and stops if not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect

T = TypeVar("T")


class NotAwaited(Exception):
    """The client left, or its deadline passed: the rest of the work is for nobody."""


class Caller:
    """Who waits, until `deadline` (in `time.monotonic()` seconds). `check` may be called from any thread.

    `patient`: whether a server behind the scorer is waited for while it is lost.
    """

    def __init__(self, deadline: float, *, patient: bool = True) -> None:
        self.deadline = deadline
        self.patient = patient
        self._left = False

    def leave(self) -> None:
        """Nobody waits from now on."""
        self._left = True

    def check(self) -> None:
        """Raise NotAwaited when nobody waits any more."""
        if self._left:
            raise NotAwaited("the client has left")
        if time.monotonic() >= self.deadline:
            raise NotAwaited("the deadline has passed")

    async def wait_for(self, work: Awaitable[T], gone: asyncio.Future[None], *, late: bool = False) -> T:
        """The result of `work`. `gone` is done when the client has left; `late`: the work keeps to the deadline itself.

        Raises ClientDisconnect or TimeoutError when the client leaves or the deadline passes first. The work is then
        cancelled, and what of it runs in a thread ends at its next `check`.
        """
        task: asyncio.Future[T] = asyncio.ensure_future(work)
        try:
            left = None if late else max(0.0, self.deadline - time.monotonic())
            await asyncio.wait((task, gone), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ClientDisconnect if gone.done() else TimeoutError
        finally:
            if not task.done():
                self.leave()
                task.add_done_callback(_look_away)
                task.cancel()


def _look_away(work: asyncio.Future[T]) -> None:
    """Nobody waits for it any more: that it ended with an error is not to be told when it is collected."""
    if not work.cancelled():
        work.exception()
