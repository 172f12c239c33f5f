"""HTTP/1.1 connections that do not wait for ever: a request must arrive in time, and its answer be read in time.

What costs more to read than it has bytes (thousands of headers, chunks of one byte) is refused. Once a second `sweep`
looks at all connections. Where there is no room for a new one, the one that does least gives way: it leaves its answer
unread, sends its request drop by drop, or says nothing after its last one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from http import HTTPStatus
from typing import Any, ClassVar

import h11
from h11._readers import ContentLengthReader
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.kit.http.pour import LEAST_POURED, Pour
from wire.hosts import is_loopback
from wire.schema import ErrorBody, RequestError

logger = logging.getLogger("services.connections")

HEADER_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 10.0  # in which a client must read LEAST_READ bytes, or all there is
LEAST_READ = 64 * 1024
LEAST_SENT = 16 * 1024  # of a body, in _GIVES_WAY_S, or another connection may take its place
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
MAX_AHEAD = 4  # requests sent before the answer to the one before was there; nearly no client does that
_MANY_CHUNKS, _SMALL_CHUNK = 1024, 256  # a body may have that many chunks of any size, and more of that many bytes
_LONGEST_LINE = 8 * 1024  # of a chunk's size, and of all trailers
_SLICE = 8 * 1024
_GIVES_WAY_S = 1.0  # an idle connection gives way to a new one after that time
_BLANK_LINE = re.compile(rb"\n\r?\n")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r?\n", re.IGNORECASE)
_CODES = {400: "malformed", 429: "overloaded", 431: "too_large", 503: "overloaded"}


class _Reader(h11.Connection):
    """h11, which would parse whatever fits into a read. `refusal`: the status and sentence of what was not read."""

    refusal: tuple[int, str] | None = None
    _chunks = _bytes = 0

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            self._check_head(self.trailing_data[0])
            self._chunks = self._bytes = 0
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._bytes < _SMALL_CHUNK * (self._chunks - _MANY_CHUNKS):
                self._refuse(
                    400,
                    f"{self._bytes} bytes in {self._chunks} chunks: send at least {_SMALL_CHUNK} in each, or a "
                    f"Content-Length",
                )
        elif event is h11.NEED_DATA and self.their_state is h11.SEND_BODY:
            rest = len(self.trailing_data[0])
            if rest > _LONGEST_LINE:
                self._refuse(400, f"{rest} bytes of trailers or of a chunk's size; the limit is {_LONGEST_LINE}")
        return event

    @property
    def body_left(self) -> int | None:
        """Bytes of the body that are still to come; None where its length is not known, or it is there."""
        return self._reader._remaining if isinstance(self._reader, ContentLengthReader) else None

    def skip(self, count: int) -> None:
        """So many bytes of the body did not pass through here."""
        assert isinstance(self._reader, ContentLengthReader) and count <= self._reader._remaining
        self._reader._remaining -= count

    def _check_head(self, received: bytes) -> None:
        blank = _BLANK_LINE.search(received)
        size = len(received) if blank is None else blank.end()
        if size > MAX_HEAD_BYTES:
            self._refuse(431, f"a request line and headers of {size} bytes; the limit is {MAX_HEAD_BYTES}")
        lines = received.count(b"\n", 0, size) - (0 if blank is None else 2)
        if lines > MAX_HEADERS:
            self._refuse(431, f"{lines} headers; the limit is {MAX_HEADERS}")

    def _refuse(self, status: int, message: str) -> None:
        self.refusal = status, message
        raise h11.RemoteProtocolError(message, error_status_hint=status)


class PatientProtocol(H11Protocol):
    """A connection within limits; its class is one server's.

    Above `max_connections`, or `per_address` of one address on which nothing was admitted yet, it is answered 503 and
    closed before a request is read, unless another gives way. Addresses of this machine, which all its programs share,
    are not counted unless `counts_loopback`.
    """

    max_connections: ClassVar[int] = 512
    per_address: ClassVar[int] = 256
    counts_loopback: ClassVar[bool] = False
    strangers: ClassVar[Counter[str]] = Counter()
    _header_timer: asyncio.TimerHandle | None = None
    _address: str | None = None  # while it counts among the strangers
    _ahead = 0
    _dropped = False
    _held_back: bytes | memoryview = b""  # came with its request's head, and h11 has not seen it
    _unsent = 0
    _unsent_since: float | None = None
    _unread_since: float | None = None
    _sent = 0
    _sent_since = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn: _Reader = _Reader(h11.SERVER, MAX_HEAD_BYTES)
        self.app_state = {**self.app_state, "on_admitted": self._count_no_more, "pour": self.pour}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        of_address = 0
        if self.client is not None and (self.counts_loopback or not is_loopback(self.client[0])):
            self._address = _network(self.client[0])
            self.strangers[self._address] += 1
            of_address = self.strangers[self._address]
        if len(self.connections) > self.max_connections and not self._make_room(None):
            self._refuse(503, f"more than {self.max_connections} connections: reuse them, or try later")
        elif of_address > self.per_address and not self._make_room(self._address):
            self._refuse(503, f"more than {self.per_address} connections of {self._address}: reuse them, or try later")
        else:
            self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._count_no_more()
        self._forget_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._give_back()
        head = self._poured_after(data)
        if head:
            self._held_back = memoryview(data)[head:]
            data = data[:head]
        self._receive(data)
        if head:
            self.loop.call_soon(self._give_back)  # after the application was asked, which may pour

    def pour(self, length: int, charge: Callable[[int], None]) -> Coroutine[Any, Any, bytearray] | None:
        """Reads the whole body of the request under way, of `length` bytes, past h11. None where that cannot be done.

        `charge` is called with bytes of memory before they are used. The coroutine raises what `charge` does, and
        ConnectionResetError where the client leaves.
        """
        left = self.conn.body_left
        if left is None or left + len(self.cycle.body) != length or self.cycle.waiting_for_100_continue:
            return None
        return self._pour(length, charge)

    async def _pour(self, length: int, charge: Callable[[int], None]) -> bytearray:
        def end() -> None:  # what comes from now on is for h11
            if self.transport.get_protocol() is pour:
                self.transport.set_protocol(self)
                self.conn.skip(pour.count - before)

        pour = Pour(length, charge, self._watch_body, end, self)
        pour.put(self.cycle.body)  # which h11 has seen
        self.cycle.body = bytearray()
        held_back = pour.put(self._held_back)
        self._held_back = self._held_back[held_back:]
        self.conn.skip(held_back)
        self._watch_body(held_back)
        before = pour.count
        if not pour.ended.done():
            self.transport.set_protocol(pour)
            self.flow.resume_reading()
        try:
            whole = await pour.ended
        finally:
            end()
        if not whole:
            raise ConnectionResetError("the client left before its body was there")
        self.handle_events()
        return pour.body

    def _poured_after(self, data: bytes) -> int:
        """The bytes of a head in `data` after which a body comes that may be poured, else 0."""
        if self.conn.their_state is not h11.IDLE or self.conn.our_state is not h11.IDLE or self.conn.trailing_data[0]:
            return 0
        blank = _BLANK_LINE.search(data, 0, MAX_HEAD_BYTES)
        if blank is None or len(data) - blank.end() == 0:
            return 0
        length = _LENGTH.search(data, 0, blank.end())
        return blank.end() if length is not None and int(length[1]) >= LEAST_POURED else 0

    def _give_back(self) -> None:
        """What nobody poured goes through h11."""
        data, self._held_back = self._held_back, b""
        if data:
            self._receive(bytes(data))

    def _receive(self, data: bytes) -> None:
        step = _SLICE if len(data) > _SLICE and self._may_be_chunked(data) else max(1, len(data))
        for start in range(0, len(data), step):
            if self.transport.is_closing():
                return
            super().data_received(data if step >= len(data) else data[start : start + step])
        self._watch_headers()
        self._watch_body(len(data))

    def on_response_complete(self) -> None:
        waits = self.conn.their_state is h11.DONE and bool(self.conn.trailing_data[0])
        self._ahead = self._ahead + 1 if waits else 0
        if self._ahead > MAX_AHEAD and self.conn.our_state is h11.DONE and not self.transport.is_closing():
            self.conn.start_next_cycle()
            self._refuse(429, f"more than {MAX_AHEAD} requests ahead of their answers: read each before the next")
        else:
            super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP with an `ErrorBody`, like every other refusal."""
        status, message = self.conn.refusal or (400, msg)
        if self.cycle is not None and not self.cycle.response_complete:  # the application is to send nothing more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(status, message)
        else:  # the answer has begun already, or is given
            self.transport.close()

    def is_stuck(self, now: float) -> bool:
        """Whether the client does not read its answer, or goes on with a body that was answered long ago."""
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0:
            self._unsent_since = None
        elif self._unsent_since is None or not self._unsent - LEAST_READ < unsent <= self._unsent:
            self._unsent, self._unsent_since = unsent, now
        answered = self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY
        self._unread_since = (self._unread_since or now) if answered else None
        waits = [since for since in (self._unsent_since, self._unread_since) if since is not None]
        return bool(waits) and now - min(waits) >= WRITE_TIMEOUT_S

    def drop(self) -> None:
        """End the connection now, whatever is unsent."""
        self._dropped = True
        self._count_no_more()
        self.transport.abort()

    def _make_room(self, address: str | None) -> bool:
        """Drop the connection (of a stranger at that address) that has been of no use for longest, if there is one."""
        until = self.loop.time() - _GIVES_WAY_S
        useless = [
            (since, each)
            for each in self.connections
            if isinstance(each, PatientProtocol) and each is not self and not each._dropped
            if address is None or address == each._address
            if (since := each._useless_since()) is not None and since[1] <= until
        ]
        if not useless:
            return False
        min(useless, key=lambda found: found[0])[1].drop()
        return True

    def _useless_since(self) -> tuple[int, float] | None:
        """Sorts connections: first those that do not read, then those that send a body or headers slowly or nothing at
        all, then idle ones, each by how long. None for one in use."""
        if self._unsent_since is not None:
            return 0, self._unsent_since
        if self._sends_body() and not self.flow.read_paused:
            return 1, self._sent_since
        if self._header_timer is not None:
            return 2, self._header_timer.when() - HEADER_TIMEOUT_S
        idle = self.timeout_keep_alive_task
        return None if idle is None else (3, idle.when() - self.timeout_keep_alive)

    def _sends_body(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY and self.cycle is not None and not self.cycle.response_complete

    def _may_be_chunked(self, data: bytes) -> bool:
        if self.conn.their_state is h11.SEND_BODY:
            return any(name == b"transfer-encoding" for name, _ in self.headers)
        return b"chunked" in data.lower()

    def _refuse(self, status: int, message: str) -> None:
        body = ErrorBody(error=RequestError(code=_CODES[status], message=message)).model_dump_json(exclude_none=True)
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        if status in (429, 503):
            headers.append((b"retry-after", b"1"))
        reason = HTTPStatus(status).phrase.encode()
        events = (
            h11.Response(status_code=status, headers=headers, reason=reason),
            h11.Data(data=body.encode()),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def _count_no_more(self) -> None:
        """A request was admitted, or the connection has ended: it is no stranger's any more."""
        if self._address is not None:
            self.strangers[self._address] -= 1
            if not self.strangers[self._address]:
                del self.strangers[self._address]
            self._address = None

    def _watch_body(self, count: int) -> None:
        """Note since when less than LEAST_SENT bytes of a body have come; `count` more are here."""
        if not self._sends_body():
            self._sent = 0
        elif self._sent == 0:  # the first of the body, or of the next LEAST_SENT
            self._sent, self._sent_since = count, self.loop.time()
        else:
            self._sent += count
            if self._sent >= LEAST_SENT:
                self._sent, self._sent_since = 0, self.loop.time()

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


def protocol_with(max_connections: int, per_address: int | None = None) -> type[PatientProtocol]:
    """A PatientProtocol for at most that many connections at a time.

    Without `per_address` it is half of them, and loopback addresses are not counted.
    """
    limits = {
        "max_connections": max_connections,
        "per_address": per_address or max(1, max_connections // 2),
        "counts_loopback": per_address is not None,
        "strangers": Counter(),
    }
    return type("LimitedProtocol", (PatientProtocol,), limits)


def sweep(connections: Iterable[Any], now: float) -> None:
    """Drop the connections that are stuck. `now` is the event loop's time, in seconds."""
    stuck = [each for each in connections if isinstance(each, PatientProtocol) and each.is_stuck(now)]
    for each in stuck:
        each.drop()
    if stuck:
        logger.warning("dropped: their answers were not read", extra={"connections": len(stuck)})


def _network(host: str) -> str:
    """What one client may take addresses from at will: its address, or the /64 of IPv6."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)
