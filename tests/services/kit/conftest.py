"""Apps in process over httpx's ASGITransport with their lifespan entered, and real processes on free ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from services.kit.app import create_app
from services.kit.scorer import Scorer
from services.kit.settings import ServiceSettings
from tests.support.service_process import running_service


@asynccontextmanager
async def _running(scorer: Scorer, wait_ready: bool = True, **settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the scorer's app; `client.app` is the app."""
    app = create_app(scorer, "test", ServiceSettings(**settings))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            client.app = app
            while wait_ready and not app.state.service.ready:
                assert app.state.service.failure is None, app.state.service.failure
                await asyncio.sleep(0.001)
            yield client


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
    return running_service


@pytest.fixture(scope="session")
def serving_factory():
    """`serving`, for fixtures of a wider scope."""
    return running_service
