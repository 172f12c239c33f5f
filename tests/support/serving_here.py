"""A service in a thread of the test's own process, on a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from services.kit.app import create_app
from services.kit.run import bind, url_of
from services.kit.scorer import AsyncScorer, Scorer
from services.kit.settings import ServiceSettings


@contextmanager
def serving_here(
    scorer: Scorer | AsyncScorer,
    name: str = "test",
    *,
    add_routes: Callable[[FastAPI], None] | None = None,
    settings_class: type[ServiceSettings] = ServiceSettings,
    **settings: Any,
) -> Iterator[str]:
    """Its URL, once it is ready."""
    made = settings_class(port=0, **settings)
    sock = bind(made)
    app = create_app(scorer, name, made, add_routes=add_routes)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        url = url_of(sock)
        until = time.monotonic() + 60
        while httpx.get(url + "/ready").status_code != 200:
            assert app.state.service.failure is None, app.state.service.failure
            assert time.monotonic() < until
            time.sleep(0.01)
        yield url
    finally:
        server.should_exit = True
        thread.join()
        sock.close()
