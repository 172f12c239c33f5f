"""HTTP connections to few servers without a pool that all calls search: its cost per call grows with their number.

Measured with 64 calls at a time of 190 kB each, by a service that asks a judge: 8.7 ms of CPU a call in httpx's own pool, most of
it looking for idle connections. With 32 requests of 16 small images, by the trainer: benchmarks/reward_connections.py.
"""

from __future__ import annotations

import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable

import httpx

from wire.tls import trusts_nobody

Origin = tuple[str, str, int | None]  # scheme, host, port


class Connections(httpx.AsyncBaseTransport):
    """To each server as many connections as there are calls at a time, each with a transport of its own; the last used is used
    first.

    `keepalive_s` after its last call a connection is not used again.
    """

    def __init__(self, keepalive_s: float, tls: ssl.SSLContext | None = None) -> None:
        """`tls` says whose certificates are believed; None is for servers without TLS."""
        self._limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=keepalive_s)
        self._tls = tls or trusts_nobody()
        self._all: list[httpx.AsyncHTTPTransport] = []
        self._free: dict[Origin, list[httpx.AsyncHTTPTransport]] = defaultdict(list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer on a free connection; it is free again when the response is closed."""
        free = self._free[request.url.scheme, request.url.host, request.url.port]
        transport = free.pop() if free else self._new()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            free.append(transport)
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Stream(response.stream, lambda: free.append(transport))
        return response

    async def aclose(self) -> None:
        for transport in self._all:
            await transport.aclose()

    def _new(self) -> httpx.AsyncHTTPTransport:
        transport = httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False, limits=self._limits)
        self._all.append(transport)
        return transport


class _Stream(httpx.AsyncByteStream):
    """A response's body that tells when it is closed."""

    def __init__(self, stream: httpx.AsyncByteStream, on_close: Callable[[], None]) -> None:
        self._stream = stream
        self._on_close = on_close

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            on_close, self._on_close = self._on_close, _nothing
            on_close()


def _nothing() -> None:
    """A body may be closed twice."""
