"""Reward servers for tests of the client: a scripted one inside the test, and the misbehaving one as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from trainer.types import Prompt, Sample

ROOT = Path(__file__).resolve().parents[2]
SCORER = {"name": "scripted", "revision": "1", "range": [None, None]}


@dataclass
class Reply:
    """One answer: a JSON-able `body` or raw bytes, after `delay_s`."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


Behave = Callable[[dict[str, Any]], Reply]


def good(request: Mapping[str, Any], score: Callable[[dict[str, Any]], float] | None = None) -> Reply:
    """A right answer; the score of an item is the number at the end of its id, if nothing else is given."""
    value = score or (lambda item: float(re.findall(r"\d+", item["id"])[-1]) if re.search(r"\d", item["id"]) else 0.0)
    results = [{"id": item["id"], "score": value(item)} for item in request["items"]]
    return Reply({"results": results, "scorer": SCORER, "request_id": request.get("request_id") or "-"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with five, a burst of connections is refused and made again a second later


class ScriptedServer:
    """A wire-v1 server in a thread that answers scoring requests as `behave` says and keeps all it was sent. `behave` gets a
    request with the bytes of its images under `parts`."""

    def __init__(self, behave: Behave = good) -> None:
        self.behave = behave
        self.ready = Reply({"status": "ready"})
        self.info = Reply(
            {
                "service": "scripted",
                "rewards": [SCORER],
                "default_reward": "scripted",
                "limits": {},
                "schema_version": "1",
            }
        )
        self.requests: list[dict[str, Any]] = []
        self.parts: list[dict[str, bytes]] = []
        self.headers: list[Mapping[str, str]] = []
        self.gets: list[str] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                server.gets.append(self.path)
                self._send(server.ready if self.path == "/ready" else server.info)

            def do_POST(self) -> None:
                size = int(self.headers["content-length"])
                body = self.rfile.read(size)
                if len(body) < size:  # the client gave up
                    self.close_connection = True
                    return
                parts = split_multipart(body, self.headers["content-type"])
                request = json.loads(parts.pop("request"))
                with server._lock:
                    server.requests.append(request)
                    server.parts.append(parts)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                self._send(server.behave({**request, "parts": parts}))

            def _send(self, reply: Reply) -> None:
                time.sleep(reply.delay_s)
                data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True  # the client gave up; a test that cares sees it on its own side

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def split_multipart(body: bytes, content_type: str) -> dict[str, bytes]:
    """The parts by name."""
    boundary = b"--" + content_type.partition("boundary=")[2].encode()
    parts = {}
    for piece in body.split(boundary)[1:-1]:
        head, _, data = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]+)"', head)
        assert name is not None
        parts[name[1].decode()] = data.removesuffix(b"\r\n")
    return parts


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """Makes scripted servers: `scripted(behave)`."""
    servers: list[ScriptedServer] = []

    def make(behave: Behave = good) -> ScriptedServer:
        servers.append(ScriptedServer(behave))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@contextmanager
def misbehaving(**flags: object) -> Iterator[Misbehaving]:
    """`services.kit.testing.misbehaving` as a process on a free port."""
    server = Misbehaving({"port": 0, **flags})
    try:
        yield server
    finally:
        server.kill()


class Misbehaving:
    """The process and its address; `choose` changes the fault, `kill` is SIGKILL, `start` brings it back."""

    def __init__(self, flags: Mapping[str, object]) -> None:
        self._flags = dict(flags)
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        self.kill()
        options = [f"--{name.replace('_', '-')}={value}" for name, value in self._flags.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.kit.testing.misbehaving", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.url = line.split()[-1]
        self._flags["port"] = int(self.url.rpartition(":")[2])

    def choose(self, fault: str, every: int = 1) -> None:
        httpx.post(f"{self.url}/fault", json={"fault": fault, "every": every}, trust_env=False).raise_for_status()

    def kill(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def make_samples(
    count: int, weights: Mapping[str, float], *, first: int = 0, group_size: int = 4, size: int = 4, **prompt: Any
) -> list[Sample]:
    """Samples s<first>, s<first+1>, ... whose pixels all have their number's value."""
    return [
        Sample(
            id=f"s{i}",
            group_id=f"g{i // group_size}",
            prompt=Prompt(id=f"p{i // group_size}", text=f"prompt {i}", weights=weights, **prompt),
            images=(np.full((size, size + 1, 3), i % 256, np.uint8),),
        )
        for i in range(first, first + count)
    ]
