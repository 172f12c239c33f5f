"""Scorers that ask a server: jobs run side by side, groups stay whole, and nobody waits for a stranger's group."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.kit.dispatch.base import Job, StartError
from services.kit.dispatch.cache import ScoreCache
from services.kit.dispatch.streamer import Streamer
from services.kit.metrics import Metrics
from services.kit.scorer import Failure, Item, Score
from tests.support.gated import until
from wire.schema import ErrorCode, ScorerInfo

pytestmark = pytest.mark.anyio


class GatedScorer:
    """A reward that compares: the longest prompt of a group gets 1. Waits at a gate for groups that say "wait"."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.groups, self.cancelled, self.deadlines = [], 0, []
        self.rewards = {"longest": ScorerInfo(name="longest", revision="1", range=(0, 1), grouped=True)}
        self.warm = [("longest", [Item(id="a", prompt="aa"), Item(id="b", prompt="b")])]
        self.cacheable = True

    async def load(self):
        pass

    async def close(self):
        self.closed = True

    def warmup(self):
        return self.warm

    async def score(self, reward, items, deadline):
        self.groups.append([item.prompt for item in items])
        self.deadlines.append(deadline)
        try:
            if any("wait" in item.prompt for item in items):
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if any("raise" in item.prompt for item in items):
            raise RuntimeError("asked to")
        longest = max(len(item.prompt) for item in items)
        return [Score(float(len(item.prompt) == longest), cacheable=self.cacheable) for item in items]


@pytest.fixture
async def scorer():
    return GatedScorer()


@pytest.fixture
async def streamer(scorer):
    streamer = Streamer(scorer, queue_size=100, cache=ScoreCache(16), metrics=Metrics())
    await streamer.start()
    scorer.groups.clear()
    yield streamer
    await streamer.stop()
    assert scorer.closed


def job(*prompts, key=None):
    return Job(tuple(Item(id=str(n), prompt=prompt) for n, prompt in enumerate(prompts)), key)


def soon(seconds=5.0):
    return time.monotonic() + seconds


def values(outcome):
    return [result.value for result in outcome.results]


async def test_a_slow_group_keeps_nobody_waiting(scorer, streamer):
    slow = streamer.submit("longest", job("wait", "x"), soon())
    assert values(await streamer.submit("longest", job("a", "bb"), soon())) == [0, 1]
    assert not slow.done()
    scorer.gate.set()
    assert values(await slow) == [1, 0]


async def test_a_group_is_cached_as_a_whole_and_joined_in_flight(scorer, streamer):
    first, twin = (streamer.submit("longest", job("wait", "x", key=b"k"), soon()) for _ in range(2))
    scorer.gate.set()
    assert values(await first) == values(await twin) == [1, 0]
    again = await streamer.submit("longest", job("wait", "x", key=b"k"), soon())
    assert again.cached and values(again) == [1, 0] and len(scorer.groups) == 1


async def test_what_could_come_out_better_is_not_cached(scorer, streamer):
    scorer.cacheable = False
    for _ in range(2):
        outcome = await streamer.submit("longest", job("a", "bb", key=b"k"), soon())
        assert not outcome.cached
    assert len(scorer.groups) == 2


async def test_nobody_waits_so_the_calls_are_cancelled(scorer, streamer):
    one, two = (streamer.submit("longest", job("wait", key=b"k"), soon()) for _ in range(2))
    await until(lambda: scorer.groups)
    one.cancel()
    await asyncio.sleep(0.01)
    assert scorer.cancelled == 0, "someone else still waits"
    two.cancel()
    await until(lambda: scorer.cancelled == 1)


async def test_the_scorer_is_told_the_deadline(scorer, streamer):
    deadline = soon(3)
    await streamer.submit("longest", job("a", "b"), deadline)
    assert scorer.deadlines[-1] == deadline


async def test_who_joins_a_job_and_waits_longer_gets_its_own_time(scorer, streamer):
    async def until_the_deadline(reward, items, deadline):
        scorer.deadlines.append(deadline)
        try:
            async with asyncio.timeout_at(deadline):
                await scorer.gate.wait()
        except TimeoutError:
            return [Failure(ErrorCode.TIMEOUT, "late")] * len(items)
        return [Score(1.0)] * len(items)

    scorer.score = until_the_deadline
    hurried, patient = soon(0.2), soon(20)
    first = streamer.submit("longest", job("a", "b", key=b"k"), hurried)
    await until(lambda: hurried in scorer.deadlines)
    twin = streamer.submit("longest", job("a", "b", key=b"k"), patient)
    assert [result.code for result in (await first).results] == [ErrorCode.TIMEOUT] * 2
    assert not twin.done() and scorer.deadlines[-2:] == [hurried, patient]
    scorer.gate.set()
    assert values(await twin) == [1, 1]


async def test_an_exception_fails_its_job_alone(streamer):
    bad, good = (streamer.submit("longest", job(*prompts), soon()) for prompts in (("raise", "x"), ("a", "bb")))
    assert [result.code for result in (await bad).results] == [ErrorCode.INTERNAL] * 2
    assert values(await good) == [0, 1]


async def test_a_failed_warm_up_is_a_start_error(scorer):
    scorer.warm = [("longest", [Item(id="a", prompt="raise")])]
    with pytest.raises(StartError, match="warm-up item of reward 'longest' failed: internal"):
        await Streamer(scorer, queue_size=1, cache=ScoreCache(0), metrics=Metrics()).start()


async def test_abandoned_jobs_are_answered(scorer, streamer):
    waiting = streamer.submit("longest", job("wait", "x"), soon())
    streamer.abandon()
    assert all(isinstance(result, Failure) for result in (await waiting).results)
