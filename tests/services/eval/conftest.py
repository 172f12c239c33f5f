"""The service as a process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[3]


class Server:
    """`python -m services.eval --port 0 ...`; `errors` are its lines on standard error."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.errors: list[str] = []
        assert process.stdout is not None and process.stderr is not None
        self.reader = threading.Thread(target=lambda: self.errors.extend(process.stderr or ()), daemon=True)
        self.reader.start()
        self.url = process.stdout.readline().split()[-1]

    def wait_ready(self) -> None:
        until = time.monotonic() + 20
        while httpx.get(f"{self.url}/ready", trust_env=False).status_code != 200:
            assert time.monotonic() < until, "".join(self.errors)
            time.sleep(0.05)

    def terminate(self) -> None:
        self.process.terminate()


@pytest.fixture
def serving_process() -> Callable[..., AbstractContextManager[Server]]:
    @contextmanager
    def start(*flags: str) -> Iterator[Server]:
        command = [sys.executable, "-m", "services.eval", "--port", "0", *flags]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        server = Server(process)
        try:
            yield server
        finally:
            process.kill()
            process.wait()
            server.reader.join()
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            process.stderr.close()

    return start
