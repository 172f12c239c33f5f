"""A service as users start it: a process of its own, on a free port."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """A real service process. `lines` are those of its standard output after the first, `errors` of standard error."""

    def __init__(self, process: subprocess.Popen[str], url: str, lines: queue.Queue[str], errors: list[str]) -> None:
        self.process, self.url, self.lines, self.errors = process, url, lines, errors
        self.readers: list[threading.Thread] = []

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_ready(self, timeout_s: float = 60) -> None:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            try:
                if httpx.get(self.url + "/ready", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.03)
        raise AssertionError("not ready: " + "".join(self.errors))

    def wait_counted(self, name: str, value: float, timeout_s: float = 30) -> None:
        """Wait until /metrics says that of a count that has no labels."""
        until = time.monotonic() + timeout_s
        line = f"{name} {value:.1f}"
        while line not in httpx.get(self.url + "/metrics", trust_env=False).text.splitlines():
            assert time.monotonic() < until, f"{line} did not come to hold"
            time.sleep(0.02)

    def log(self) -> str:
        """All that was written to standard error by the process, which has ended."""
        self.process.wait(30)
        for reader in self.readers:
            reader.join()
        return "".join(self.errors)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def running_service(
    *arguments: object, module: str = "services.kit.testing.fakes", env: Mapping[str, str | None] | None = None
) -> Iterator[Server]:
    """`python -m module --port 0 …`, killed at the end whatever happens. A variable of `env` that is None is unset."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--port", "0", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in environment.items() if value is not None},
    )
    assert process.stdout is not None and process.stderr is not None
    output, errors = process.stdout, process.stderr
    lines: queue.Queue[str] = queue.Queue()
    error_lines: list[str] = []
    readers = [
        threading.Thread(target=lambda: [lines.put(line) for line in output], daemon=True),
        threading.Thread(target=lambda: error_lines.extend(errors), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        first = lines.get(timeout=300)
        assert " listening on http" in first, first
        server = Server(process, first.split()[-1], lines, error_lines)
        server.readers = readers
        yield server
    finally:
        process.kill()
        process.wait()
        for reader in readers:
            reader.join()
        output.close()
        errors.close()


@contextmanager
def ready_service(name: str, *arguments: object, env: Mapping[str, str | None] | None = None) -> Iterator[str]:
    """The URL of `python -m services.<name>` once it has said that it is ready; at the end it must stop with 0.

    The trainer's variable, <NAME>_URL, is set: it may be where a service starts, and says nothing to it.
    """
    environment = {f"{name.upper()}_URL": "http://127.0.0.1:1", **(env or {})}
    with running_service(*arguments, module=f"services.{name}", env=environment) as server:
        try:
            assert server.lines.get(timeout=300) == f"{name} ready\n"
        except queue.Empty:
            raise AssertionError("not ready: " + "".join(server.errors)) from None
        yield server.url
        server.terminate()
        assert server.process.wait(30) == 0, "".join(server.errors)
