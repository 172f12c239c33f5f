"""Bodies that go past h11: the same bytes, limits and answers as through it, however they come."""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from uvicorn.server import ServerState

from services.kit.errors import ApiError
from services.kit.guard.memory import MemoryBudget
from services.kit.http import pour as pour_module
from services.kit.http.body import read_body
from services.kit.http.pour import LEAST_POURED, Pour
from services.kit.http.protocol import PatientProtocol
from services.kit.metrics import Metrics

pytestmark = pytest.mark.anyio
MIB = 1 << 20
LIMIT = 8 * MIB
BODY = bytes(range(256)) * (3 * MIB // 256) + b"end"
GET = b"GET /next HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def head(length, more=b""):
    return b"POST / HTTP/1.1\r\nHost: localhost\r\n" + more + b"Content-Length: %d\r\n\r\n" % length


def chunked(body):
    pieces = (body[at : at + 50_000] for at in range(0, len(body), 50_000))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class App:
    """Answers with the hash of the body and how many bytes are charged for it; errors as their status."""

    def __init__(self, memory=64 * MIB, timeout_s=10.0):
        self.budget = MemoryBudget(memory, Metrics(), lambda: 1)
        self.timeout_s = timeout_s
        self.left = asyncio.Event()

    async def __call__(self, scope, receive, send):
        hold, status = self.budget.hold(), 200
        try:
            body = await read_body(Request(scope, receive), LIMIT, self.timeout_s, hold)
            answer = {"path": scope["path"], "sha": hashlib.sha256(body).hexdigest(), "charged": self.budget.used}
        except ApiError as error:
            status, answer = error.status, {"message": error.message}
        except ClientDisconnect:
            self.left.set()
            return
        finally:
            hold.release()
        await JSONResponse(answer, status)(scope, receive, send)


@asynccontextmanager
async def serving(app):
    """The port of a server in this loop, and how many bytes h11 has seen."""
    config, state, seen = uvicorn.Config(app, log_config=None, ws="none"), ServerState(), SimpleNamespace(bytes=0)
    config.load()

    class Counted(PatientProtocol):
        def __init__(self, *args):
            super().__init__(*args)
            receive_data = self.conn.receive_data
            self.conn.receive_data = lambda data: (setattr(seen, "bytes", seen.bytes + len(data)), receive_data(data))[
                1
            ]

    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Counted(config, state, {}, loop), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()


async def exchange(port, count, *pieces, pause_s=0.0):
    """Status and text of the first `count` answers to what is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = []
    try:
        async with asyncio.timeout(20):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
            for _ in range(count):
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = re.search(r"content-length: (\d+)", head)
                body = b"" if length is None else await reader.readexactly(int(length[1]))
                found.append((int(head.split()[1]), body.decode()))
        return found
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


WAYS = {
    "head and body apart": (head(len(BODY)), BODY, GET),
    "all at once": (head(len(BODY)) + BODY + GET,),
    "the next request's head in two": (head(len(BODY)) + BODY + GET[:9], GET[9:]),
    "a head in two": (head(len(BODY))[:20], head(len(BODY))[20:] + BODY[:70_000], BODY[70_000:] + GET),
    "a byte short of all": (head(len(BODY)) + BODY[:-1], BODY[-1:], GET),
    "just large enough": (head(LEAST_POURED), BODY[:LEAST_POURED], GET),
}


@pytest.mark.parametrize("name", WAYS)
async def test_however_it_comes_it_is_read_once_and_the_next_request_is_answered(name):
    pieces = WAYS[name]
    body = BODY[:LEAST_POURED] if name == "just large enough" else BODY
    async with serving(App()) as (port, seen):
        (first, one), (second, two) = await exchange(port, 2, *pieces, pause_s=0.02)
    assert (first, second) == (200, 200), (one, two)
    assert hashlib.sha256(body).hexdigest() in one and f'"charged":{len(body)}' in one.replace(" ", "")
    assert '"/next"' in two.replace(" ", "")
    assert seen.bytes < 80_000, "only heads, and what came before the application was asked, go through h11"


async def test_what_cannot_be_poured_is_read_as_ever():
    in_chunks = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + chunked(BODY)
    async with serving(App()) as (port, seen):
        [(status, text)] = await exchange(port, 1, in_chunks)
        assert status == 200 and hashlib.sha256(BODY).hexdigest() in text and seen.bytes > len(BODY)
        (asked, _), (status, text) = await exchange(
            port, 2, head(len(BODY), b"Expect: 100-continue\r\n"), BODY, pause_s=0.02
        )
        assert (asked, status) == (100, 200) and hashlib.sha256(BODY).hexdigest() in text


@pytest.mark.parametrize(
    ("app", "declared", "sent", "status", "said"),
    [
        ({}, LIMIT + 1, 0, 413, "the limit is"),
        ({"memory": 2 * MIB}, len(BODY), 3 * MIB, 413, "need more than 2097152 bytes"),
        ({"timeout_s": 0.1}, len(BODY), 100_000, 408, "did not arrive within 0.1 s"),
    ],
)
async def test_limits_hold_while_it_comes(app, declared, sent, status, said):
    async with serving(App(**app)) as (port, _):
        [(found, text)] = await exchange(port, 1, head(declared), BODY[:sent])
        assert found == status and said in text
        [(found, _)] = await exchange(port, 1, GET)
        assert found == 200


async def test_a_client_that_leaves_in_the_middle_is_noticed():
    app = App()
    async with serving(app) as (port, _):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(len(BODY)) + BODY[:500_000])
        await writer.drain()
        writer.close()
        async with asyncio.timeout(5):
            await app.left.wait()
    assert app.budget.used == 0


def make_pour(length, charge):
    events = []
    connection = SimpleNamespace(connection_lost=lambda _error: events.append("lost"))
    return Pour(length, charge, lambda _count: None, lambda: events.append("end"), connection), events


async def test_room_is_charged_before_it_is_touched_and_follows_what_has_come():
    charged = []
    pour, events = make_pour(len(BODY), charged.append)
    assert pour.put(b"") == 0 and charged == [pour_module._FIRST]
    while not pour.ended.done():
        room = len(pour.get_buffer()) + pour.count
        assert room <= max(pour_module._FIRST, pour_module._FACTOR * pour.count) and room == sum(charged)
        took = min(10_000, room - pour.count)
        pour.get_buffer()[:took] = BODY[pour.count : pour.count + took]
        pour.buffer_updated(took)
    assert await pour.ended is True and pour.body == BODY and sum(charged) == len(BODY) and events == ["end"]


async def test_what_is_refused_ends_the_reading_at_once():
    def refuse(count):
        if count > pour_module._FIRST:
            raise ApiError(429, "no room")

    pour, events = make_pour(len(BODY), refuse)
    pour.put(b"")
    pour.buffer_updated(pour_module._FIRST)
    assert events == ["end"]
    with pytest.raises(ApiError, match="no room"):
        await pour.ended
    pour.connection_lost(None)
    assert events == ["end", "lost"]
