"""Micro-batching without HTTP: who is computed, with whom, and on which thread."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from services.kit.dispatch.base import Job, QueueFull, StartError
from services.kit.dispatch.batcher import Batcher
from services.kit.dispatch.cache import ScoreCache, cache_key
from services.kit.metrics import Metrics
from services.kit.scorer import Failure, Item, Score
from services.kit.testing.fakes import PromptLengthScorer, RaisingScorer, SlowScorer
from tests.support.gated import Gated, until
from wire.schema import ErrorCode, ScoreItem, ScorerInfo

pytestmark = pytest.mark.anyio


@pytest.fixture
async def start():
    batchers = []

    async def start(scorer, queue_size=100, max_wait_s=0.0, cache_entries=0):
        batcher = Batcher(
            scorer,
            queue_size=queue_size,
            max_wait_s=max_wait_s,
            cache=ScoreCache(cache_entries),
            metrics=Metrics(),
        )
        batchers.append(batcher)
        await batcher.start()
        getattr(scorer, "batches", []).clear()
        return batcher

    yield start
    for batcher in batchers:
        await batcher.stop()


def soon(seconds=5.0):
    return time.monotonic() + seconds


def submit(batcher, n, reward, deadline=None, key=None):
    return batcher.submit(reward, Job((Item(id=str(n), prompt="x" * n, completion=""),), key), deadline or soon())


class Parallel(Gated):
    """Takes two calls at once, like a pool of two processes."""

    concurrency = 2
    name = "parallel"


async def test_small_request_is_spread_over_idle_lanes(start):
    scorer = Parallel(max_batch=16)
    batcher = await start(scorer)
    answers = [submit(batcher, n, "parallel", soon(60)) for n in range(12)]
    await until(lambda: scorer.entered == 2)  # side by side, not one after the other
    scorer.gate.set()
    await asyncio.gather(*answers)
    assert sorted(scorer.batches) == [6, 6]
    assert len(scorer.threads) == 2


async def test_large_request_is_cut_into_full_batches(start):
    scorer = PromptLengthScorer(max_batch=8)
    batcher = await start(scorer)
    outcomes = await asyncio.gather(*(submit(batcher, n, "prompt_length") for n in range(20)))
    assert [outcome.results[0].value for outcome in outcomes] == list(range(20))
    assert scorer.batches == [8, 8, 4]


async def test_batch_waits_for_company_but_not_longer_than_asked(start):
    scorer = PromptLengthScorer(max_batch=4)
    batcher = await start(scorer, max_wait_s=0.4)
    began = time.monotonic()
    first = submit(batcher, 1, "prompt_length")
    await asyncio.sleep(0)
    await asyncio.gather(first, submit(batcher, 2, "prompt_length"))
    assert scorer.batches == [2]
    assert time.monotonic() - began > 0.39
    patient = await start(scorer, max_wait_s=600)
    async with asyncio.timeout(60):  # a full batch does not wait
        await asyncio.gather(*(submit(patient, n, "prompt_length", soon(900)) for n in range(4)))


async def test_expired_items_are_not_computed(start):
    scorer = SlowScorer(0.1, max_batch=1)
    batcher = await start(scorer)
    running, late = submit(batcher, 1, "slow"), submit(batcher, 2, "slow", deadline=soon(0.05))
    assert isinstance((await running).results[0], Score)
    outcome = await late
    assert outcome.results[0].code is ErrorCode.TIMEOUT
    assert scorer.batches == [1]


async def test_cancelled_items_are_not_computed_and_leave_the_queue(start):
    scorer = Gated()
    batcher = await start(scorer)
    running, gone = (submit(batcher, n, "prompt_length", soon(60)) for n in (1, 2))
    await until(lambda: scorer.entered == 1)
    gone.cancel()
    await asyncio.sleep(0)
    assert not batcher._queues["prompt_length"], "its images must not stay in memory"
    scorer.gate.set()
    await running
    await submit(batcher, 3, "prompt_length", soon(60))
    assert scorer.entered == 2


async def test_twins_in_flight_are_computed_once(start):
    scorer = Gated()
    batcher = await start(scorer, cache_entries=10)
    one, two = (submit(batcher, 3, "prompt_length", soon(60), b"same") for _ in range(2))
    await until(lambda: scorer.entered == 1)
    three = submit(batcher, 3, "prompt_length", soon(60), b"same")
    scorer.gate.set()
    outcomes = await asyncio.gather(one, two, three)
    assert scorer.batches == [1]
    assert [outcome.cached for outcome in outcomes] == [False, True, True]


async def test_twin_survives_the_first_ones_leaving(start):
    scorer = SlowScorer(0.05, max_batch=1)
    batcher = await start(scorer, cache_entries=10)
    busy = submit(batcher, 9, "slow")
    first, second = (submit(batcher, 3, "slow", key=b"same") for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await busy
    assert (await second).results[0].value == 3


async def test_failure_of_a_twin_is_not_cached(start):
    batcher = await start(RaisingScorer(), cache_entries=10)
    item = Item(id="a", prompt="raise", completion="")
    for _ in range(2):
        outcome = await batcher.submit("raising", Job((item,), b"key"), soon())
        assert isinstance(outcome.results[0], Failure) and not outcome.cached


async def test_load_score_and_close_share_one_thread(start):
    class Owner(PromptLengthScorer):
        def load(self):
            self.threads.add(threading.get_ident())

        def close(self):
            self.threads.add(threading.get_ident())
            self.closed = True

    scorer = Owner()
    batcher = await start(scorer)
    await asyncio.gather(*(submit(batcher, n, "prompt_length") for n in range(30)))
    await batcher.stop()
    assert scorer.closed
    assert len(scorer.threads) == 1
    assert threading.get_ident() not in scorer.threads


async def test_reserve_refuses_above_the_limit_with_a_guess_of_when(start):
    batcher = await start(SlowScorer(0.1, max_batch=1), queue_size=30)
    for n in range(2):
        await submit(batcher, n, "slow")
    batcher.reserve(30)
    with pytest.raises(QueueFull, match="30 items are in flight and 1 more would exceed the limit of 30") as caught:
        batcher.reserve(1)
    assert 2 <= caught.value.retry_after_s <= 60, "30 items at 10 a second take 3 s, more on a busy machine"
    batcher.release(30)
    batcher.reserve(1)


async def test_stop_does_not_wait_for_a_stuck_scorer(start):
    scorer = Gated()
    batcher = await start(scorer)
    stuck = submit(batcher, 1, "prompt_length", soon(60))
    await until(lambda: scorer.entered == 1)
    await batcher.stop(timeout_s=0.1)
    scorer.gate.set()
    assert (await stuck).results[0].code is ErrorCode.OVERLOADED


async def test_system_exit_of_a_library_does_not_kill_the_lane(start):
    class Exits(PromptLengthScorer):
        def score_item(self, item):
            if item.prompt == "xxx":
                raise SystemExit(3)
            return super().score_item(item)

    batcher = await start(Exits())
    assert (await submit(batcher, 3, "prompt_length")).results[0].code is ErrorCode.INTERNAL
    assert (await submit(batcher, 2, "prompt_length")).results[0].value == 2


async def test_warm_up_that_is_no_score_fails_the_start():
    class Cold(PromptLengthScorer):
        def score_item(self, item):
            return Failure(ErrorCode.UPSTREAM, "nobody behind me")

    batcher = Batcher(Cold(), queue_size=1, max_wait_s=0, cache=ScoreCache(0), metrics=Metrics())
    with pytest.raises(StartError, match="warm-up item of reward 'prompt_length' failed: upstream: nobody behind me"):
        await batcher.start()
    await batcher.stop()


async def test_rewards_are_batched_apart_and_oldest_first(start):
    class Two(PromptLengthScorer):
        seen: list = []  # noqa: RUF012

        @property
        def rewards(self):
            return {n: ScorerInfo(name=n, revision="1", range=(0, None)) for n in ("prompt_length", "other")}

        def score(self, reward, items):
            self.seen.append((reward, len(items)))
            return super().score(reward, items)

    batcher = await start(Two())
    Two.seen.clear()
    futures = [submit(batcher, n, ("other", "prompt_length")[n % 2]) for n in range(6)]
    await asyncio.gather(*futures)
    assert Two.seen == [("other", 3), ("prompt_length", 3)]


async def test_cache_key_and_batcher_agree(start):
    scorer = PromptLengthScorer()
    batcher = await start(scorer, cache_entries=10)
    item = Item(id="a", prompt="abc", completion="")
    key = cache_key(scorer.rewards["prompt_length"], ScoreItem(id="a", prompt="abc", completion=""), [])
    outcomes = [await batcher.submit("prompt_length", Job((item,), key), soon()) for _ in range(2)]
    assert [outcome.cached for outcome in outcomes] == [False, True]
