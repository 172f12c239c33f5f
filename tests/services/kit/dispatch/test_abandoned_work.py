"""Work whose client left or whose deadline passed is dropped: between two pictures, in a queue, and in a worker process."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from starlette.requests import ClientDisconnect, Request

from services.kit.app import create_app
from services.kit.dispatch import decoding
from services.kit.dispatch.base import Job
from services.kit.dispatch.batcher import Batcher
from services.kit.dispatch.cache import ScoreCache
from services.kit.dispatch.caller import Caller, NotAwaited
from services.kit.dispatch.isolation import NOT_AWAITED, score_isolated
from services.kit.dispatch.workers import ProcessPool
from services.kit.metrics import Metrics
from services.kit.scorer import Item, Score
from services.kit.settings import ServiceSettings
from services.kit.testing.fakes import PromptLengthScorer, RaisingScorer
from wire.images import encode
from wire.schema import ErrorCode, ScoreResponse

PNG = encode(Image.new("RGB", (4, 4), "red"), "image/png")


def form(items, **fields):
    """A multipart body and its headers' content type; `items` are (prompt, part) pairs, parts are all the same PNG."""
    import json

    request = {
        "items": [
            {"id": str(n), "prompt": prompt, "images": [{"part": part, "media_type": "image/png"}]}
            for n, (prompt, part) in enumerate(items)
        ],
        **fields,
    }
    parts = {"request": json.dumps(request).encode(), **{part: PNG for _, part in items}}
    head = b'--xx\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
    return b"".join(head % name.encode() + data + b"\r\n" for name, data in parts.items()) + b"--xx--\r\n"


HEADERS = {"Content-Type": "multipart/form-data; boundary=xx"}


@pytest.fixture
def slow_loads(monkeypatch):
    """Decoding takes a hundredth of a second for each picture; the list grows with each that is decoded."""
    loads, real = [], decoding.load

    def load(picture):
        time.sleep(0.01)
        loads.append(threading.get_ident())
        return real(picture)

    monkeypatch.setattr(decoding, "load", load)
    return loads


@pytest.mark.anyio
async def test_a_part_that_many_items_name_is_decoded_once(running, slow_loads):
    async with running(PromptLengthScorer()) as client:
        answer = await client.post("/v1/score", content=form([("four", "p")] * 300 + [("five!", "q")]), headers=HEADERS)
    results = ScoreResponse.model_validate_json(answer.content).results
    assert [result.score for result in results] == [4.0] * 300 + [5.0]
    assert len(slow_loads) == 2


@pytest.mark.anyio
async def test_a_bad_part_is_looked_at_once_and_fails_all_who_name_it(running, slow_loads):
    body = form([("four", "p")] * 50 + [("five!", "q")]).replace(PNG, b"\x89PNG and no more", 1)
    async with running(PromptLengthScorer()) as client:
        answer = await client.post("/v1/score", content=body, headers=HEADERS)
    results = ScoreResponse.model_validate_json(answer.content).results
    assert [result.error.code for result in results[:50]] == [ErrorCode.BAD_INPUT] * 50
    assert results[49].error.message.startswith("images.0: not a readable image/png")
    assert results[50].score == 5.0 and len(slow_loads) == 1


class Painter(PromptLengthScorer):
    """Writes to the picture it gets, and scores what it found there."""

    name = "painter"

    def score_item(self, item):
        if not item.images:
            return Score(0.0)
        [image] = item.images
        found = image.getpixel((0, 0))[0]
        image.paste("black", (0, 0, 4, 4))
        return Score(float(found))


@pytest.mark.anyio
async def test_a_scorer_that_writes_to_a_picture_does_not_change_its_neighbours(running):
    async with running(Painter(), cache_entries=0) as client:
        answer = await client.post("/v1/score", content=form([("a", "p")] * 20), headers=HEADERS)
    assert [result["score"] for result in answer.json()["results"]] == [255.0] * 20


@pytest.mark.anyio
async def test_decoding_ends_at_the_deadline(running, slow_loads):
    items = [("p", f"part{n}") for n in range(900)]  # nine seconds of decoding in one thread, two in four
    async with running(PromptLengthScorer()) as client:
        answer = await client.post("/v1/score", content=form(items, deadline_ms=1000), headers=HEADERS)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert "none of 900 items had a result within 1000 ms" in answer.json()["error"]["message"]
        service = client.app.state.service
        await asyncio.to_thread(service._threads.shutdown, wait=True)
        assert 0 < len(slow_loads) < 900, "the rest is for nobody"
        assert service._memory.used == 0 and service.in_flight == 0


@pytest.mark.anyio
async def test_decoding_ends_when_the_client_leaves(slow_loads):
    app = create_app(PromptLengthScorer(), "test", ServiceSettings())
    body = form([("p", f"part{n}") for n in range(900)])
    left, sent = asyncio.Event(), []

    async def receive():
        if not sent:
            sent.append(True)
            return {"type": "http.request", "body": body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async with app.router.lifespan_context(app):
        service = app.state.service
        while not service.ready:
            await asyncio.sleep(0.001)
        headers = [(b"content-type", HEADERS["Content-Type"].encode())]
        request = Request({"type": "http", "method": "POST", "path": "/v1/score", "headers": headers}, receive)
        task = asyncio.create_task(service.score(request, time.monotonic()))
        while len(slow_loads) < 3:
            await asyncio.sleep(0.001)
        left.set()
        with pytest.raises(ClientDisconnect):
            await task
        await asyncio.to_thread(service._threads.shutdown, wait=True)
        assert len(slow_loads) < 900
        assert service._memory.used == 0 and service.in_flight == 0


@pytest.mark.anyio
async def test_requests_take_turns_at_decoding(running, slow_loads):
    """One request of many pictures does not keep another of one picture waiting until it is done."""
    many = form([("p", f"part{n}") for n in range(900)], deadline_ms=60_000)
    async with running(PromptLengthScorer()) as client:
        busy = asyncio.create_task(client.post("/v1/score", content=many, headers=HEADERS))
        while len(slow_loads) < 20:
            await asyncio.sleep(0.001)
        small = await client.post("/v1/score", content=form([("four", "p")]), headers=HEADERS)
        assert small.json()["results"][0]["score"] == 4.0
        assert len(slow_loads) < 600 and not busy.done()
        assert (await busy).status_code == 200
    assert len(slow_loads) == 901


def test_a_caller_is_asked_from_any_thread():
    caller = Caller(time.monotonic() + 60)
    caller.check()
    caller.leave()
    with pytest.raises(NotAwaited, match="left"):
        caller.check()
    with pytest.raises(NotAwaited, match="deadline"):
        Caller(time.monotonic() - 1).check()


@pytest.mark.anyio
async def test_work_that_ends_by_itself_as_it_is_given_up_is_no_error_of_anyone():
    """Threads look at the deadline, too: what they raise then was no result, and is no line in the log."""
    unheard = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context))

    async def strand():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise NotAwaited("the deadline has passed") from None

    gone = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        await Caller(time.monotonic() + 0.05).wait_for(asyncio.gather(strand(), strand()), gone)
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    assert unheard == []


class Dangerous(PromptLengthScorer):
    """Does to its process what the prompt says."""

    name = "dangerous"

    def score_item(self, item):
        if item.prompt == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if item.prompt.startswith("hang"):
            Path(item.prompt.removeprefix("hang")).touch()
            time.sleep(600)
        return super().score_item(item)


@pytest.fixture
def pool():
    pool = ProcessPool(Dangerous, workers=1, batch_timeout_s=300.0, abandoned_s=0.1)
    pool.load()
    yield pool
    pool.close()


def item(prompt, number=0):
    return Item(id=str(number), prompt=prompt, completion="")


def test_a_process_that_is_busy_for_nobody_is_replaced_and_its_work_not_tried_again(pool, tmp_path):
    """Who waited leaves as soon as the process has begun."""
    begun = tmp_path / "begun"
    assert pool.score_awaited("dangerous", [item(f"hang{begun}")], [lambda: not begun.exists()]) == [NOT_AWAITED]
    assert [result.value for result in pool.score("dangerous", [item("four")])] == [4.0]
    assert pool.restarts == 1


def test_a_batch_goes_on_while_anyone_waits_for_any_of_it(pool):
    results = pool.score_awaited("dangerous", [item("a"), item("bc", 1)], [lambda: False, lambda: True])
    assert [result.value for result in results] == [1.0, 2.0]
    assert pool.restarts == 0


def test_items_of_a_process_that_died_are_tried_again_only_where_someone_waits(pool):
    results = pool.score_awaited("dangerous", [item("die"), item("bc", 1)], [lambda: False, lambda: True])
    assert results[0] == NOT_AWAITED and results[1].value == 2.0
    assert pool.restarts == 1, "the item that kills was not tried a second time"


def test_items_of_a_batch_that_raised_are_tried_again_only_where_someone_waits():
    scorer = RaisingScorer()
    items = [item("raise"), item("four", 1), item("five!", 2)]
    results = score_isolated(scorer, "raising", items, [lambda: True, lambda: False, lambda: True])
    assert results[0].code is ErrorCode.INTERNAL
    assert results[1:] == [NOT_AWAITED, results[2]] and results[2].value == 5.0
    assert scorer.batches == [3, 1, 1]


class DropsTheFirst(PromptLengthScorer):
    """Drops its first batch when it is told to go on, as a pool does with one that nobody waits for."""

    name = "drops"

    def __init__(self):
        super().__init__()
        self.started, self.go_on = threading.Event(), threading.Event()
        self.calls = 0

    def score_awaited(self, reward, items, awaited):
        self.calls += 1
        if items[0].id == "warmup" or self.calls > 1:
            return self.score(reward, items)
        self.started.set()
        assert self.go_on.wait(30)
        return [NOT_AWAITED] * len(items)


@pytest.mark.anyio
async def test_who_joins_a_job_that_is_being_dropped_gets_a_score():
    scorer = DropsTheFirst()
    batcher = Batcher(scorer, queue_size=10, max_wait_s=0.0, cache=ScoreCache(10), metrics=Metrics())
    await batcher.start()
    job = Job((item("four"),), b"key")
    first = batcher.submit("drops", job, time.monotonic() + 60)
    await asyncio.to_thread(scorer.started.wait, 30)
    first.cancel()
    await asyncio.sleep(0)
    second = batcher.submit("drops", job, time.monotonic() + 60)
    scorer.go_on.set()
    assert (await second).results == (Score(4.0, {"images": 0.0}, {"prompt": "four"}),)
    await batcher.stop()
