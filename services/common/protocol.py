"""HTTP/1.1 connections that do not wait for ever: a request's headers must arrive in time."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from wire.schema import ErrorBody, RequestError

HEADER_TIMEOUT_S = 10.0


class PatientProtocol(H11Protocol):
    """Closes a connection whose request line and headers take longer than HEADER_TIMEOUT_S to arrive.

    Connections above `max_connections` are answered 503 and closed, before a request is read.
    """

    max_connections = 512
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(503, "overloaded", f"more than {self.max_connections} connections: reuse them, or try later")
        else:
            self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_headers()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP with an `ErrorBody`, like every other refusal."""
        self._refuse(400, "malformed", msg)

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = ErrorBody(error=RequestError(code=code, message=message)).model_dump_json(exclude_none=True)
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        reason = HTTPStatus(status).phrase.encode()
        events = (
            h11.Response(status_code=status, headers=headers, reason=reason),
            h11.Data(data=body.encode()),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def _watch_headers(self) -> None:
        incomplete = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        if not incomplete:
            self._forget_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._on_header_timeout)

    def _on_header_timeout(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()

    def _forget_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def protocol_with(max_connections: int) -> type[PatientProtocol]:
    """A PatientProtocol for at most that many connections at a time."""
    return type("LimitedProtocol", (PatientProtocol,), {"max_connections": max_connections})
