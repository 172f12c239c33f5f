"""Waiting in the trainer's own queue, or for its own event loop, is nobody's fault: no deadline runs and no breaker opens."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.support.reward_servers import Reply, good, make_samples
from trainer.rewards.slots import LoopClock, SlotQueue
from trainer.types import Scores


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def burst(client: Any, micro_batches: int, columns: tuple[str, ...] = ("r",)) -> Scores:
    batch = client.batch()
    for n in range(micro_batches):
        batch.submit(make_samples(4, dict.fromkeys(columns, 1.0), first=4 * n))
    return batch.collect()


def test_the_deadline_begins_when_a_request_is_sent(scripted: Any, connect: Any) -> None:
    """Eighteen requests of 0.2 s one after the other, each with a deadline of three seconds: all are in time."""
    client = connect(
        scripted(lambda request: replace(good(request), delay_s=0.2)),
        columns={"a": {}, "b": {}, "c": {}},
        timeout_s=3.0,
        max_in_flight=1,
    )
    scores = burst(client, 6, ("a", "b", "c"))
    assert scores.valid_BR.all()
    assert max(max(each) for each in scores.latency_ms.values()) > 3 * 1000, "the queue is in the latency"
    assert client.said("breaker") == client.said("failure") == []


def test_a_request_has_its_whole_deadline_whenever_it_is_sent(scripted: Any, connect: Any) -> None:
    server = scripted(lambda request: replace(good(request), delay_s=0.3))
    assert burst(connect(server, timeout_s=5.0, max_in_flight=1), 4).valid_BR.all()
    assert all(4_000 < request["deadline_ms"] <= 5_000 for request in server.requests)


def test_the_queue_has_a_bound_and_a_code_of_its_own(scripted: Any, connect: Any) -> None:
    """One request hangs longer than the others may queue: they were never sent, and the URL is not blamed for them."""
    release = threading.Event()

    def hang(request: dict[str, Any]) -> Reply:
        release.wait(20)
        return good(request)

    server = scripted(hang)
    client = connect(server, timeout_s=20.0, queue_timeout_s=0.5, max_in_flight=1, breaker_failures=1)
    batch = client.batch()
    for n in range(4):
        batch.submit(make_samples(4, {"r": 1.0}, first=4 * n))
    until = time.monotonic() + 20
    while len(client.said("failure")) < 3 and time.monotonic() < until:
        time.sleep(0.02)
    release.set()
    scores = batch.collect()
    assert scores.valid_BR[:, 0].tolist() == [True] * 4 + [False] * 12
    assert scores.failures["r"] == Counter(client_queue=12)
    message = scores.details[-1]["r"]["error"]["message"]
    assert "not sent" in message and "max_in_flight = 1" in message
    assert "rewards.services.svc.queue_timeout_s" in message
    assert len(server.requests) == 1
    assert client.said("breaker") == []
    assert client._callers["svc"].pool.endpoints[0].breaker.state == "closed"


def test_what_queues_for_a_service_that_is_gone_does_not_wait_for_the_queues_bound(scripted: Any, connect: Any) -> None:
    release = threading.Event()

    def hang(_: dict[str, Any]) -> Reply:
        release.wait(20)
        return Reply({}, 503)

    client = connect(
        scripted(hang),
        timeout_s=1.0,
        queue_timeout_s=600.0,
        max_in_flight=1,
        breaker_failures=1,
        breaker_reset_s=300.0,
        max_attempts=1,
    )
    scores = burst(client, 4)
    release.set()
    assert set(scores.failures["r"]) <= {"timeout", "unreachable"} and scores.failures["r"].total() == 16


@pytest.mark.anyio
async def test_a_slot_comes_back_however_its_holder_ends() -> None:
    """All slots can be held at once in the end: a lost one would be waited for."""
    queue = SlotQueue(2, lambda since: None)

    async def hold(error: Exception | None) -> None:
        async with queue.slot():
            await asyncio.sleep(0)
            if error is not None:
                raise error

    await asyncio.gather(*(hold(ValueError() if n % 2 else None) for n in range(9)), return_exceptions=True)
    waiting = [asyncio.ensure_future(hold(None)) for _ in range(6)]
    await asyncio.sleep(0)
    for task in waiting[1:4]:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(20), queue.slot(), queue.slot():
        late = asyncio.ensure_future(hold(None))
        await asyncio.sleep(0)
        assert not late.done(), "there are two, not three"
    await late


@pytest.mark.anyio
async def test_the_slots_are_taken_in_order() -> None:
    queue, order = SlotQueue(1, lambda since: None), []

    async def hold(number: int) -> None:
        async with queue.slot():
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(hold(number) for number in range(20)))
    assert order == list(range(20))


@pytest.mark.anyio
async def test_a_busy_event_loop_takes_nothing_from_a_deadline() -> None:
    """The answer lies there while this process is busy for longer than the whole deadline."""
    clock, answered = LoopClock(), asyncio.get_running_loop().create_future()

    def prepare_requests() -> None:
        time.sleep(0.5)
        answered.set_result("in time")

    async def work() -> str:
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_soon(prepare_requests)
        return str(await answered)

    assert await clock.within(0.3, work()) == "in time"
    assert clock.lost_s > 0.3


@pytest.mark.anyio
async def test_a_deadline_ends_what_takes_longer_and_cancels_it() -> None:
    ended = []

    async def never() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(TimeoutError):
        await LoopClock().within(0.05, never())
    assert ended == [True]
