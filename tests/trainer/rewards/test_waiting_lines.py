"""Whoever waits for a service is told which URL, why, and again."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.reward_servers import Reply, good, make_samples
from trainer.rewards import RewardServiceError, startup
from trainer.rewards.answers import RewardEvent


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_FIRST_LINE_S", 0.3)
    monkeypatch.setattr(startup, "_NEXT_LINE_S", 0.3)


@contextmanager
def when(condition: Callable[[], object], act: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `act` once the condition holds."""

    def wait() -> None:
        until = time.monotonic() + 60
        while not condition() and time.monotonic() < until:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def test_the_first_line_comes_after_five_seconds_and_then_every_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [100.0], []
    monkeypatch.setattr(startup.time, "monotonic", lambda: now[0])
    line = startup.WaitingLine("svc", "http://there:1", 120.0, said.append)
    times = []
    for tick in range(0, 61):
        now[0] = 100.0 + tick / 2
        before = len(said)
        line.look("connection refused")
        times += [tick / 2] * (len(said) - before)
    assert times == [5.0, 15.0, 25.0]
    assert said[1] == RewardEvent(
        "waiting", "svc", "waiting for http://there:1 for 15 of at most 120 s: connection refused"
    )


@pytest.mark.usefixtures("hurried")
def test_a_start_names_url_and_reason_while_it_waits(connect: Any, caplog: pytest.LogCaptureFixture) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    client = connect(url, start=False, rewards={"ready_timeout_s": 2.0})
    with pytest.raises(RewardServiceError):
        client.start()
    assert len(client.said("waiting")) >= 2
    assert all(
        re.search(rf"waiting for {url} for \d+ of at most 2 s: .*connect", text) for text in client.said("waiting")
    )
    assert any(record.levelname == "WARNING" and url in record.message for record in caplog.records), "on the console"


@pytest.mark.usefixtures("hurried")
def test_a_service_that_loads_is_named_with_what_it_says(scripted: Any, connect: Any) -> None:
    server = scripted()
    server.ready = Reply({"error": {"code": "x", "message": "loading weights"}}, 503)
    client = connect(server, start=False, rewards={"ready_timeout_s": 60.0})
    with when(lambda: client.said("waiting"), lambda: setattr(server, "ready", Reply({"status": "ready"}))):
        client.start()
    assert "/ready answered 503: loading weights" in client.said("waiting")[0]


@pytest.mark.usefixtures("hurried")
def test_a_pause_says_again_and_again_what_it_waits_for(scripted: Any, connect: Any) -> None:
    server = scripted()
    client = connect(server, columns={"r": {"max_failure_rate": 0.0, "patience_s": 60.0}}, max_attempts=1)
    server.behave, server.ready = (lambda _: Reply({}, 503)), Reply({"error": {"code": "x", "message": "gone"}}, 503)

    def back() -> None:
        server.behave, server.ready = good, Reply({"status": "ready"})

    batch = client.batch()
    batch.submit(make_samples(4, {"r": 1.0}))
    with when(lambda: len(client.said("waiting")) >= 2, back):
        assert batch.collect().valid_BR.all()
    assert len(client.said("waiting")) >= 2
    assert server.url in client.said("waiting")[0] and "gone" in client.said("waiting")[0]
