"""Cross-request dynamic micro-batching.

All bookkeeping happens on the event loop, so there are no locks. Scoring happens on lanes: threads of which each runs
one batch at a time. A scorer has one lane, unless it says with `concurrency` that it takes several calls at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from services.common.cache import ScoreCache
from services.common.isolation import score_isolated
from services.common.lanes import Lane
from services.common.metrics import Metrics
from services.common.scorer import Failure, Item, Result, Score, Scorer
from wire.schema import ErrorCode

logger = logging.getLogger("services.batcher")


class StartError(RuntimeError):
    """The scorer did not load, or a warm-up item did not come back as a score."""


class QueueFull(Exception):
    """No room for a request's items; `retry_after_s` is a guess from the queue's depth and its drain rate."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Outcome:
    """What became of one submitted item. Times in seconds; `compute_s` is the time of the whole batch it was in."""

    result: Result
    cached: bool = False
    queue_s: float = 0.0
    compute_s: float = 0.0


@dataclass(eq=False)
class _Waiter:
    future: asyncio.Future[Outcome]
    deadline: float
    since: float


@dataclass(eq=False)
class _Entry:
    """An item to score, and all who wait for it."""

    reward: str
    item: Item
    key: bytes | None
    since: float
    waiters: list[_Waiter] = field(default_factory=list)
    running: bool = False


class Batcher:
    """Owns a scorer: loads it, feeds it batches, closes it."""

    def __init__(
        self, scorer: Scorer, *, queue_size: int, max_wait_s: float, cache: ScoreCache, metrics: Metrics
    ) -> None:
        self._scorer = scorer
        self._queue_size = queue_size
        self._max_wait_s = max_wait_s
        self._cache = cache
        self._metrics = metrics
        self._concurrency = max(1, int(getattr(scorer, "concurrency", 1)))
        self._lanes = [Lane(f"scorer-{number}") for number in range(self._concurrency)]
        self._idle: list[Lane] = []
        self._queues: dict[str, OrderedDict[_Entry, None]] = {name: OrderedDict() for name in scorer.rewards}
        self._in_flight: dict[bytes, _Entry] = {}
        self._running: set[_Entry] = set()
        self._reserved = 0
        self._items_per_s: float | None = None
        self._timer: asyncio.Handle | None = None
        self._loaded = False
        self._stopped = False

    async def start(self) -> None:
        """Load the scorer and let it score its warm-up items. Raises StartError with the reason."""
        lane = self._lanes[0]
        try:
            await lane.run(self._scorer.load)
        except Exception as error:
            raise StartError(f"loading failed: {error or type(error).__name__}") from error
        self._loaded = True
        for reward, item in await lane.run(self._scorer.warmup):
            [result] = await lane.run(lambda r=reward, i=item: score_isolated(self._scorer, r, [i]))  # type: ignore[misc]
            if isinstance(result, Failure):
                raise StartError(f"the warm-up item of reward {reward!r} failed: {result.code}: {result.message}")
        self._idle = list(self._lanes)
        self._pump()

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Abandon what still waits, close the scorer, end the lanes; a stuck call is left after `timeout_s`."""
        if self._stopped:
            return
        self._stopped = True
        self._idle = []
        self.abandon()
        if self._timer is not None:
            self._timer.cancel()
        for lane in self._lanes[1:]:
            lane.stop()
        try:
            if self._loaded:
                async with asyncio.timeout(timeout_s):
                    await self._lanes[0].run(self._scorer.close)
        except TimeoutError:
            logger.warning("the scorer is stuck in a call; not waiting for it", extra={"timeout_s": timeout_s})
        except Exception:
            logger.exception("closing the scorer raised")
        self._lanes[0].stop()

    def abandon(self) -> None:
        """Answer every item that has no score yet with `overloaded`; running batches still fill the cache."""
        for entry in [*self._running, *(entry for queue in self._queues.values() for entry in queue)]:
            self._settle(entry, Failure(ErrorCode.OVERLOADED, "the service is shutting down"), 0.0, 0.0)
        for queue in self._queues.values():
            queue.clear()

    @property
    def in_flight(self) -> int:
        """Items accepted and not yet answered."""
        return self._reserved

    def reserve(self, count: int) -> None:
        """Take room for `count` items; give it back with `release`. Raises QueueFull."""
        if self._reserved + count > self._queue_size:
            raise QueueFull(
                f"{self._reserved} items are in flight and {count} more would exceed the limit of {self._queue_size}",
                self.retry_after_s(),
            )
        self._reserved += count
        self._metrics.in_flight.set(self._reserved)

    def release(self, count: int) -> None:
        self._reserved -= count
        self._metrics.in_flight.set(self._reserved)

    def retry_after_s(self) -> int:
        """Seconds until what is in flight should be done at the recent rate, between 1 and 60."""
        if not self._items_per_s:
            return 1
        return min(60, max(1, math.ceil(self._reserved / self._items_per_s)))

    def submit(self, reward: str, item: Item, key: bytes | None, deadline: float) -> asyncio.Future[Outcome]:
        """Queue an item. `key` (None: not cacheable) finds its score in the cache, or its twin in flight.

        `deadline` is in `time.monotonic()` seconds: an item still queued then is not computed. Cancelling the future
        takes the item out of the queue, unless someone else waits for the same.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        now = time.monotonic()
        if key is not None:
            hit = self._cache.get(key)
            if hit is not None:
                self._metrics.cache_hits.labels(reward).inc()
                future.set_result(Outcome(hit, cached=True))
                return future
            twin = self._in_flight.get(key)
            if twin is not None:
                self._metrics.coalesced.labels(reward).inc()
                self._wait_on(twin, future, deadline, now)
                return future
        self._metrics.cache_misses.labels(reward).inc()
        entry = _Entry(reward, item, key, now)
        self._wait_on(entry, future, deadline, now)
        self._queues[reward][entry] = None
        if key is not None:
            self._in_flight[key] = entry
        self._depth_changed()
        if self._timer is None:  # not at once: the request's other items are submitted before the loop turns
            self._timer = asyncio.get_running_loop().call_soon(self._pump)
        return future

    def _wait_on(self, entry: _Entry, future: asyncio.Future[Outcome], deadline: float, now: float) -> None:
        entry.waiters.append(_Waiter(future, deadline, now))

        def on_done(done: asyncio.Future[Outcome]) -> None:
            if done.cancelled() and not entry.running and all(w.future.cancelled() for w in entry.waiters):
                self._queues[entry.reward].pop(entry, None)
                self._forget(entry)
                self._depth_changed()

        future.add_done_callback(on_done)

    def _pump(self) -> None:
        """Hand out batches while there are idle lanes and batches that are full or have waited long enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle:
            heads = sorted((next(iter(queue)).since, reward) for reward, queue in self._queues.items() if queue)
            if not heads:
                return
            now = time.monotonic()
            due = [reward for since, reward in heads if self._is_due(reward, since, now)]
            if not due:
                wait = heads[0][0] + self._max_wait_s - now
                self._timer = asyncio.get_running_loop().call_later(wait, self._pump)
                return
            self._hand_out(due[0])

    def _is_due(self, reward: str, since: float, now: float) -> bool:
        return len(self._queues[reward]) >= self._scorer.max_batch or now >= since + self._max_wait_s

    def _hand_out(self, reward: str) -> None:
        """Spread a reward's queue over the idle lanes in equal parts, each at most a full batch."""
        queue = self._queues[reward]
        size = min(self._scorer.max_batch, math.ceil(len(queue) / self._concurrency))
        for _ in range(len(self._idle)):
            batch = self._take(queue, size)
            if not batch:
                return
            self._run(self._idle.pop(), reward, batch)

    def _take(self, queue: OrderedDict[_Entry, None], size: int) -> list[_Entry]:
        now = time.monotonic()
        batch: list[_Entry] = []
        while queue and len(batch) < size:
            entry, _ = queue.popitem(last=False)
            for waiter in entry.waiters:
                if waiter.deadline <= now and not waiter.future.done():
                    late = Failure(ErrorCode.TIMEOUT, "the deadline passed while the item was queued")
                    waiter.future.set_result(Outcome(late, queue_s=now - waiter.since))
            if all(waiter.future.done() for waiter in entry.waiters):
                self._forget(entry)
                continue
            entry.running = True
            self._running.add(entry)
            batch.append(entry)
        self._depth_changed()
        return batch

    def _run(self, lane: Lane, reward: str, batch: list[_Entry]) -> None:
        started = time.monotonic()
        items = [entry.item for entry in batch]
        future = lane.run(lambda: score_isolated(self._scorer, reward, items))
        self._metrics.batch_items.labels(reward).observe(len(batch))

        def on_done(done: asyncio.Future[list[Result]]) -> None:
            took = time.monotonic() - started
            error = done.exception()
            results: list[Result] = (
                done.result()
                if error is None
                else [Failure(ErrorCode.INTERNAL, f"the scorer raised {error}")] * len(batch)
            )
            self._metrics.compute_seconds.labels(reward).observe(took)
            self._measure_rate(len(batch), took)
            for entry, result in zip(batch, results, strict=True):
                self._settle(entry, result, started, took)
            if not self._stopped:
                self._idle.append(lane)
                self._pump()

        future.add_done_callback(on_done)

    def _settle(self, entry: _Entry, result: Result, started: float, took: float) -> None:
        self._forget(entry)
        self._running.discard(entry)
        if entry.key is not None and isinstance(result, Score):
            self._cache.put(entry.key, result)
        for number, waiter in enumerate(entry.waiters):
            if not waiter.future.done():
                queue_s = max(0.0, started - waiter.since)
                self._metrics.queue_seconds.labels(entry.reward).observe(queue_s)
                cached = number > 0 and isinstance(result, Score)
                waiter.future.set_result(Outcome(result, cached, queue_s, took))

    def _forget(self, entry: _Entry) -> None:
        if entry.key is not None and self._in_flight.get(entry.key) is entry:
            del self._in_flight[entry.key]

    def _depth_changed(self) -> None:
        self._metrics.queue_depth.set(sum(len(queue) for queue in self._queues.values()))

    def _measure_rate(self, items: int, took: float) -> None:
        rate = items * self._concurrency / max(took, 1e-6)
        self._items_per_s = rate if self._items_per_s is None else 0.8 * self._items_per_s + 0.2 * rate
