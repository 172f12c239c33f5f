"""Connections to few servers: as many as calls at a time, used again, and given back however a call ends."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.support.judges import judging
from tests.support.ports import free_port
from wire.connections import Connections

pytestmark = pytest.mark.anyio


class Server:
    """Answers `fine`, to `/slow` after 0.3 s, and counts its connections."""

    def __init__(self):
        self.tasks = []

    @property
    def connections(self):
        return len(self.tasks)

    async def serve(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        while line := await reader.readline():
            while (await reader.readline()).strip():
                pass
            await asyncio.sleep(0.3 if b"/slow" in line else 0)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine")
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@pytest.fixture
async def server():
    return Server()


@pytest.fixture
async def client(server):
    listening = await asyncio.start_server(server.serve, "127.0.0.1", port := free_port())
    async with httpx.AsyncClient(transport=Connections(keepalive_s=60), base_url=f"http://127.0.0.1:{port}") as client:
        yield client
    await asyncio.gather(*server.tasks, return_exceptions=True)
    listening.close()
    await listening.wait_closed()


async def test_one_connection_for_calls_one_after_another(client, server):
    for _ in range(5):
        assert (await client.get("/")).text == "fine"
    assert server.connections == 1


async def test_as_many_connections_as_calls_at_a_time(client, server):
    for _ in range(3):
        await asyncio.gather(*(client.get("/slow") for _ in range(4)))
    assert server.connections == 4


async def test_connections_to_two_servers_are_kept_apart(client, server):
    """With one place for both, each call would close the other server's connection."""
    other = Server()
    listening = await asyncio.start_server(other.serve, "127.0.0.1", port := free_port())
    for _ in range(3):
        assert (await client.get("/")).text == (await client.get(f"http://127.0.0.1:{port}/")).text == "fine"
    assert (server.connections, other.connections) == (1, 1)
    await client.aclose()
    await asyncio.gather(*other.tasks, return_exceptions=True)
    listening.close()
    await listening.wait_closed()


async def test_a_cancelled_call_gives_its_place_back(client, server):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.get("/slow"), 0.05)
    assert (await client.get("/")).text == "fine"
    assert len(client._transport._all) == 1


async def test_a_body_that_is_not_read_gives_its_place_back_once(client):
    async with client.stream("GET", "/"):
        pass
    assert [len(free) for free in client._transport._free.values()] == [len(client._transport._all)] == [1]
    assert (await client.get("/")).text == "fine"


async def test_an_idle_connection_is_not_used_for_ever(client, server):
    """The second client keeps a connection for no time at all."""
    async with httpx.AsyncClient(transport=Connections(keepalive_s=0), base_url=client.base_url) as hasty:
        await hasty.get("/")
        await hasty.get("/")
    assert server.connections == 2
    await client.get("/")
    await client.get("/")
    assert server.connections == 3


async def test_nobody_there_is_an_error_and_the_next_call_finds_the_server():
    port = free_port()
    async with httpx.AsyncClient(transport=Connections(3), base_url=f"http://127.0.0.1:{port}") as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/v1/models")
        with judging("x", port=port):
            assert (await client.get("/v1/models")).status_code == 200
