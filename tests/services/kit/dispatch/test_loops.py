"""Work that goes on: whatever a turn raises, there is a next one, and the failure shows."""

from __future__ import annotations

import asyncio
import logging

import pytest

from services.kit.dispatch.loops import Loop
from services.kit.scorer import Score
from services.kit.testing.fakes import ConstantScorer
from tests.support.redis_services import until

pytestmark = pytest.mark.anyio
ITEM = {"id": "a", "prompt": "p", "completion": "c"}


class Quiet(Exception):
    """Said elsewhere."""


class Turns:
    """Raises what it is given, one thing a turn; after that a turn is good. Counts all."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.count = 0

    async def __call__(self):
        await asyncio.sleep(0)
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.parametrize("error", [TypeError("'RedisRefused' object is not iterable"), ValueError(), OSError("disk")])
async def test_a_turn_that_fails_is_logged_and_shown_and_followed_by_the_next(error, caplog):
    turns = Turns(error, error)
    loop = Loop("watching", turns)
    loop.start()
    await until(lambda: turns.count == 2)
    assert loop.failure is not None and loop.failure.startswith(f"watching failed: {type(error).__name__}: {error}")
    await until(lambda: turns.count > 2)
    assert loop.failure is None
    await loop.end()
    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 1 and told[0].exc_info, "the same failure is told once"


async def test_what_is_said_elsewhere_is_no_failure_of_the_loop(caplog):
    turns = Turns(Quiet(), Quiet())
    loop = Loop("listening", turns, said_elsewhere=(Quiet,))
    loop.start()
    await until(lambda: turns.count == 2)
    assert loop.failure is None and not [record for record in caplog.records if record.levelno > logging.DEBUG]
    await until(lambda: turns.count > 2)
    await loop.end()


async def test_a_cancellation_that_nobody_asked_for_does_not_end_it():
    """A library may leave one behind when a timeout of its own comes in a wrong moment."""
    turns = Turns(asyncio.CancelledError())
    loop = Loop("listening", turns)
    loop.start()
    await until(lambda: turns.count == 1)
    assert loop.failure == "listening failed: a turn was cancelled by what it called"
    await until(lambda: turns.count > 2)
    await loop.end()
    assert loop.failure is None and loop.task.done()


async def test_one_that_was_ended_by_others_says_so():
    loop = Loop("listening", Turns(), pause_s=60)
    loop.start()
    loop.task.cancel()
    await until(loop.task.done)
    assert loop.failure == "listening has ended: it was cancelled; start the service again"


async def test_it_is_over_when_it_need_not_go_on_and_does_its_last_thing():
    done = []

    async def last():
        done.append("last")

    turns = Turns()
    loop = Loop("reading", turns, goes_on=lambda: turns.count < 3, last=last)
    loop.start()
    await until(loop.task.done)
    assert (turns.count, done, loop.failure) == (3, ["last"], None)


class Comes(ConstantScorer):
    """Is lost; trying to come back raises a few times."""

    def __init__(self):
        super().__init__()
        self.failure = None
        self.tries = 0

    def recover(self):
        self.tries += 1
        if self.tries < 3:
            raise OSError("no process ids left")
        self.failure = None


async def test_a_recovery_that_raises_is_tried_again(running):
    scorer = Comes()
    async with running(scorer) as client:
        scorer.failure = "all workers are gone"
        await until(lambda: scorer.tries > 0)
        await until(lambda: client.app.state.service.ready)
        assert scorer.tries == 3
        assert (await client.post("/v1/score", json={"items": [ITEM]})).status_code == 200


async def test_a_watch_that_fails_shows_in_ready(running):
    async with running(ConstantScorer()) as client:
        service = client.app.state.service
        service._watching._turn = Turns(*[KeyError("bug")] * 2)
        await until(lambda: not service.ready)
        answer = await client.get("/ready")
        assert answer.status_code == 503 and "watching the scorer failed: KeyError: 'bug'" in answer.text
        await until(lambda: service.ready)


async def test_a_bug_after_a_batch_costs_neither_its_lane_nor_the_time_of_who_waits(running, monkeypatch):
    async with running(ConstantScorer()) as client:
        with monkeypatch.context() as patch:
            patch.setattr(client.app.state.service._dispatcher, "_measure_rate", lambda *_: 1 / 0)
            [failed] = (await client.post("/v1/score", json={"items": [ITEM]})).json()["results"]
        [scored] = (await client.post("/v1/score", json={"items": [ITEM]})).json()["results"]
    assert failed["error"]["code"] == "internal" and "ZeroDivisionError" in failed["error"]["message"]
    assert scored["score"] == 0.5


async def test_a_bug_in_a_job_of_a_judge_is_answered_at_once(running, monkeypatch):
    class Judge(ConstantScorer):
        async def load(self):
            pass

        async def close(self):
            pass

        def warmup(self):
            return []

        async def score(self, reward, items, deadline):
            return [Score(1.0) for _ in items]

    async with running(Judge()) as client:
        monkeypatch.setattr(client.app.state.service._dispatcher, "_measure_rate", lambda *_: 1 / 0)
        [result] = (await client.post("/v1/score", json={"items": [ITEM]})).json()["results"]
    assert result["error"]["code"] == "internal" and "ZeroDivisionError" in result["error"]["message"]
