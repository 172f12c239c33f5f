"""Run a service as a process: bind, load, serve, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Generator

import uvicorn
from fastapi import FastAPI

from services.kit.app import create_app
from services.kit.heap import keep_freed_memory
from services.kit.http.protocol import MAX_HEAD_BYTES, protocol_with, sweep
from services.kit.http.service import Service
from services.kit.logs import configure_logs
from services.kit.scorer import AsyncScorer, Scorer
from services.kit.settings import ServiceSettings

logger = logging.getLogger("services.run")

_SWEEP_TICKS = 10  # of the server, which ticks ten times a second


def serve(
    make_scorer: Callable[[], Scorer | AsyncScorer],
    settings: ServiceSettings,
    service_name: str,
    add_routes: Callable[[FastAPI], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Prints the URL on stdout when listening, and a line when ready.

    Exits the process: 0 after an orderly stop, 1 with a sentence on stderr when the scorer cannot be made, loaded or
    warmed up, the token file is wrong, or the address cannot be bound.
    """
    configure_logs(service_name, settings.log_level)
    keep_freed_memory()
    failures: list[str] = []
    try:
        sock = bind(settings)
        server = _Server(service_name, failures)
        server.build(make_scorer, settings, add_routes)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise SystemExit(f"{service_name} did not start: {error}") from error
    print(f"{service_name} listening on {url_of(sock)}", flush=True)
    asyncio.run(server.main(sock, settings.drain_s))
    if failures:
        raise SystemExit(f"{service_name} did not start: {failures[0]}")


class _Server(uvicorn.Server):
    def __init__(self, name: str, failures: list[str]) -> None:
        self._name = name
        self._failures = failures
        self._stopping: asyncio.Task[None] | None = None

    def build(
        self,
        make_scorer: Callable[[], Scorer | AsyncScorer],
        settings: ServiceSettings,
        add_routes: Callable[[FastAPI], None] | None,
    ) -> None:
        self._app: FastAPI = create_app(make_scorer(), self._name, settings, self._on_start_error, add_routes)
        self._service: Service = self._app.state.service
        super().__init__(
            uvicorn.Config(
                self._app,
                http=protocol_with(settings.max_connections, settings.max_connections_per_address),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=settings.trusted_proxies is not None,
                forwarded_allow_ips=settings.trusted_proxies or "",
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=5,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )

    async def main(self, sock: socket.socket, drain_s: float) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number, drain_s)
        announcing = asyncio.create_task(self._announce())
        await self.serve(sockets=[sock])
        announcing.cancel()

    async def on_tick(self, counter: int) -> bool:
        if counter % _SWEEP_TICKS == 0:
            sweep(list(self.server_state.connections), asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Uvicorn would raise the signal again after the shutdown; an orderly stop exits with 0."""
        yield

    def _on_signal(self, number: int, drain_s: float) -> None:
        if self._stopping is not None:
            self.should_exit = self.force_exit = True
            return
        logger.info("draining", extra={"signal": signal.Signals(number).name, "in_flight": self._service.in_flight})
        self._service.drain()
        self._stopping = asyncio.get_running_loop().create_task(self._drain(drain_s))

    async def _drain(self, drain_s: float) -> None:
        until = time.monotonic() + drain_s
        try:
            while self._service.in_flight and time.monotonic() < until:
                await asyncio.sleep(0.02)
            if self._service.in_flight:
                logger.warning("drain time is over", extra={"drain_s": drain_s, "in_flight": self._service.in_flight})
                self._service.abandon()
        finally:  # whatever happened: who sent the signal waits for the end
            self.should_exit = True

    async def _announce(self) -> None:
        while not self._service.ready and not self.should_exit:
            await asyncio.sleep(0.02)
        if self._service.ready:
            print(f"{self._name} ready", flush=True)

    def _on_start_error(self, reason: str) -> None:
        self._failures.append(reason)
        self.should_exit = True


def bind(settings: ServiceSettings) -> socket.socket:
    """A listening socket on the settings' address. Raises OSError with the remedy."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only where it is: without, each answer waits 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((settings.host, settings.port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise OSError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror or error}): "
            f"choose another --port, or 0 for a free one"
        ) from error
    return sock


def url_of(sock: socket.socket) -> str:
    """The base URL of a listening socket, with its real port."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
