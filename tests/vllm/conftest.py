"""One real vLLM server for the session. Where its environment is missing, what needs it is skipped with the remedy."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support.tiny_qwen3vl import make_checkpoint
from tests.support.vllm_server import VllmServer, missing

MODEL = "judge"
_servers: list[VllmServer] = []


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random Qwen3-VL; skips where nothing can serve it."""
    if reason := missing():
        pytest.skip(reason)
    return make_checkpoint(tmp_path_factory.mktemp("tiny_qwen3vl"))


@pytest.fixture(scope="session")
def _session_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    server = VllmServer(checkpoint, MODEL, tmp_path_factory.mktemp("vllm") / "server.log")
    _servers.append(server)
    server.start()  # here, so that a server that cannot start is tried once
    yield server
    server.kill()


@pytest.fixture
def vllm(_session_server: VllmServer) -> VllmServer:
    """The running server; a test may kill it."""
    if not _session_server.alive:
        _session_server.start()
    return _session_server


@pytest.fixture
def alone() -> None:
    """No other server runs: each takes 3 GB."""
    for server in _servers:
        server.kill()


@pytest.fixture(scope="module")
def alone_in_this_module() -> None:
    """As `alone`, for servers that a module keeps."""
    for server in _servers:
        server.kill()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the end of the server's log."""
    report = yield
    if report.failed and _servers:
        report.sections.append(("vLLM's log", _servers[0].log_tail()))
    return report
