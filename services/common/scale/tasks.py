"""Ending tasks that talk to Redis."""

from __future__ import annotations

import asyncio

_AGAIN_S = 0.1


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended.

    Once may not do: the client sends within `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that
    comes in the moment the sending is done.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_S)
