"""Apps in process over httpx's ASGITransport with their lifespan entered, and real processes on free ports."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from services.common.app import create_app
from services.common.scorer import Scorer
from services.common.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[3]


@asynccontextmanager
async def _running(scorer: Scorer, wait_ready: bool = True, **settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the scorer's app; `client.app` is the app."""
    app = create_app(scorer, "test", ServiceSettings(**settings))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            client.app = app
            while wait_ready and not app.state.service.ready:
                assert app.state.service.failure is None, app.state.service.failure
                await asyncio.sleep(0.001)
            yield client


class Server:
    """A real service process."""

    def __init__(self, process: subprocess.Popen, url: str, lines: queue.Queue, errors: list[str]) -> None:
        self.process, self.url, self.lines, self.errors = process, url, lines, errors

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_ready(self, timeout_s: float = 20) -> None:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            try:
                if httpx.get(self.url + "/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.03)
        raise AssertionError("not ready: " + "".join(self.errors))

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def _serving(
    *arguments: str, module: str = "services.common.fakes", env: dict[str, str] | None = None
) -> Iterator[Server]:
    """`python -m module --port 0 …`, stopped at the end whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--port", "0", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    lines: queue.Queue[str] = queue.Queue()
    errors: list[str] = []
    readers = [
        threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True),
        threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        first = lines.get(timeout=20)
        assert " listening on http" in first, first
        yield Server(process, first.split()[-1], lines, errors)
    finally:
        process.kill()
        process.wait()
        for reader in readers:
            reader.join()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def running():
    """`async with running(scorer, **settings) as client`."""
    return _running


@pytest.fixture
def serving():
    """`with serving("--behaviour", "slow") as server`."""
    return _serving


@pytest.fixture(scope="session")
def serving_factory():
    """`serving`, for fixtures of a wider scope."""
    return _serving
