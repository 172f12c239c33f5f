"""A real Redis on a free port of this machine, with its append-only file in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from tests.support.ports import free_port

_OLDEST = 7


class RedisServer:
    """The process. `kill` is SIGKILL. `start` brings it back on the same port, with what its file has kept."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port(most=55_535)  # one of a cluster takes the port 10,000 above, too
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        where = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder), "--logfile", "redis.log")
        keep = ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec")
        self._process = subprocess.Popen(["redis-server", *where, *keep, *self._options])
        until = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("redis-server did not start: " + (self.folder / "redis.log").read_text())
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def kill_and_lose(self, count: int) -> None:
        """SIGKILL, and the last `count` bytes of the append-only file are gone, as they may be when power fails."""
        self.kill()
        [path] = self.folder.glob("appendonlydir/*.incr.aof")
        os.truncate(path, max(0, path.stat().st_size - count))

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, protocol=2)

    def _answers(self) -> bool:
        with suppress(redis.ConnectionError), self.client() as client:
            return bool(client.ping())
        return False


def why_no_redis() -> str | None:
    """Why no `redis-server` that is new enough can be started here, or None."""
    program = shutil.which("redis-server")
    if program is None:
        return "no redis-server on PATH: apt-get install redis-server"
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)", text)
    if found is None or int(found[1]) < _OLDEST:
        return f"Redis {_OLDEST} or newer is needed; found: {text.strip()}"
    return None


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for the tests of a module; `redis_server` gives it empty."""
    missing = why_no_redis()
    if missing is not None:
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A running, empty server."""
    with shared_redis.client() as client:
        client.config_set("maxmemory", 0)
        client.flushall()
    return shared_redis
