"""Scripted judges on real sockets, for tests of what asks a judge."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from services.kit.testing.scripted_judge import Behave, Reply, ScriptedJudge
from tests.support.ports import free_port


@contextmanager
def judging(behave: Behave | str, model: str = "judge", port: int | None = None) -> Iterator[ScriptedJudge]:
    """A judge in a thread of its own; `judge.url` is where it listens. A text is what it always answers."""
    judge = ScriptedJudge(behave if callable(behave) else lambda _question: Reply(str(behave)), model)
    port = port or free_port()
    server = uvicorn.Server(uvicorn.Config(judge.app(), host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the judge did not start"
        threading.Event().wait(0.005)
    judge.url = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
    try:
        yield judge
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)
