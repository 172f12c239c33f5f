"""Serves an application on one address until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Coroutine, Generator

import uvicorn
from starlette.types import ASGIApp

from trainer.config import ConfigError
from trainer.runs.shell import Guard


@contextlib.contextmanager
def listening(host: str, port: int) -> Generator[tuple[socket.socket, str]]:
    """A socket that takes connections already, and its URL. Raises ConfigError: the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(128)  # who reads the address may come at once
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"{host}:{port} cannot be listened on: {error}; choose another --port, or 0 for any"
            ) from error
        name = f"[{host}]" if ":" in host else host
        yield sock, f"http://{name}:{sock.getsockname()[1]}"


def serve(
    app: ASGIApp,
    sock: socket.socket,
    guard: Guard,
    beside: Callable[[], Coroutine[None, None, None]] | None = None,
) -> None:
    """Serve; an orderly stop returns. `guard` is told, so that streams end with the server.

    `beside`: runs on the server's event loop as long as it serves, and is cancelled then; where it raises, so does this.
    """

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:
            """Uvicorn would raise the signal again after the shutdown; an orderly stop exits with 0."""
            yield

    server = Server(
        uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="warning",
            server_header=False,
            limit_concurrency=512,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=3,
        )
    )

    def stop() -> None:
        guard.stopping = server.should_exit = True  # streams end by themselves, or the server would wait for them

    async def run() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        task = None if beside is None else asyncio.ensure_future(beside())
        if task is not None:
            task.add_done_callback(lambda _: stop())  # a page that shows what nobody renews is worse than none
        await server.serve(sockets=[sock])
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())
