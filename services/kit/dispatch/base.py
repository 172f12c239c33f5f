"""Jobs and dispatchers: which request waits for which score, wherever the scores are computed.

A job is what is scored together: one item or, for a reward that compares, the items of one group. A dispatcher takes
jobs, answers those whose scores are known, joins those that are already being scored, and passes on the rest. The
kinds: `Batcher` (a scorer in this process, in micro-batches), `Streamer` (a scorer that itself asks a server), and
`scale.front.Front` (whichever worker takes the job from Redis).

All bookkeeping happens on the event loop, so there are no locks.
"""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.kit.dispatch.cache import ScoreCache
from services.kit.dispatch.parts import Part
from services.kit.metrics import Metrics
from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode, ScoreItem


class StartError(RuntimeError):
    """The scorer did not load, or a warm-up item did not come back as a score."""


class QueueFull(Exception):
    """No room for a request's items; `retry_after_s` is a guess from the queue's depth and its drain rate."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Job:
    """What is scored together. `key` finds its scores in the cache, or its twin in flight; None: not cacheable.

    `sent` and `parts` are the items as they came, for whoever has to send them on.
    """

    items: tuple[Item, ...]
    key: bytes | None = None
    sent: tuple[ScoreItem, ...] = ()
    parts: Mapping[str, memoryview] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a job, one result per item. Times in seconds; `compute_s` is that of the whole batch it was in."""

    results: tuple[Result, ...]
    cached: bool = False
    queue_s: float = 0.0
    compute_s: float = 0.0


@dataclass(eq=False)
class Waiter:
    """One request's interest in a job. `deadline` and `since` are in `time.monotonic()` seconds."""

    future: asyncio.Future[Outcome]
    deadline: float
    since: float
    counted: bool = True


@dataclass(eq=False)
class Entry:
    """A job to score, and all who wait for it."""

    reward: str
    job: Job
    since: float
    waiters: list[Waiter] = field(default_factory=list)

    @property
    def abandoned(self) -> bool:
        return all(waiter.future.done() for waiter in self.waiters)

    @property
    def deadline(self) -> float:
        return max(waiter.deadline for waiter in self.waiters)

    def is_awaited(self) -> bool:
        """Whether anyone waits for the job still, and may have the answer in time. May be called from any thread."""
        now = time.monotonic()
        return any(not waiter.future.done() and waiter.deadline > now for waiter in list(self.waiters))


class Dispatcher(Part, ABC):
    """Accepts jobs and settles them. A subclass says where they are scored."""

    def __init__(self, *, queue_size: int, cache: ScoreCache, metrics: Metrics) -> None:
        self._queue_size = queue_size
        self._cache = cache
        self._metrics = metrics
        self._entries: dict[Entry, None] = {}  # in the order they came
        self._by_key: dict[bytes, Entry] = {}
        self._reserved = 0
        self._items_per_s: float | None = None

    @abstractmethod
    def _accept(self, entry: Entry) -> None:
        """Have a new entry scored; call `_settle` when that is done."""

    @abstractmethod
    def _withdraw(self, entry: Entry) -> None:
        """Nobody waits for the entry any more: if that saves work, drop it with `_forget`."""

    async def prefetch(self, jobs: Sequence[Job]) -> None:  # most know nothing else
        """Bring scores that are known elsewhere into the cache, before their jobs are submitted."""

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

    def submit(self, reward: str, job: Job, deadline: float, *, counted: bool = True) -> asyncio.Future[Outcome]:
        """Have a job scored. `deadline` is in `time.monotonic()` seconds: a job still queued then is not computed.

        Cancelling the future withdraws the job, unless someone else waits for the same. A worker's jobs are not
        `counted` in the metrics of cache and queue: the front that took the request has done so.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        now, count = time.monotonic(), len(job.items) if counted else 0
        if job.key is not None:
            hit = self._cache.get(job.key)
            if hit is not None:
                self._metrics.cache_hits.labels(reward).inc(count)
                future.set_result(Outcome(hit, cached=True))
                return future
            twin = self._by_key.get(job.key)
            if twin is not None:
                self._metrics.coalesced.labels(reward).inc(count)
                self._wait_on(twin, Waiter(future, deadline, now, counted))
                return future
        self._metrics.cache_misses.labels(reward).inc(count)
        entry = Entry(reward, job, now)
        self._entries[entry] = None
        if job.key is not None:
            self._by_key[job.key] = entry
        self._wait_on(entry, Waiter(future, deadline, now, counted))
        self._accept(entry)
        return future

    def abandon(self) -> None:
        """Answer every item that has no score yet with `overloaded`; what is being scored still fills the cache."""
        for entry in list(self._entries):
            self._fail(entry, ErrorCode.OVERLOADED, "the service is shutting down")

    def _wait_on(self, entry: Entry, waiter: Waiter) -> None:
        entry.waiters.append(waiter)

        def on_done(done: asyncio.Future[Outcome]) -> None:
            if done.cancelled() and entry in self._entries and entry.abandoned:
                self._withdraw(entry)

        waiter.future.add_done_callback(on_done)

    def _fail(self, entry: Entry, code: ErrorCode, message: str) -> None:
        self._settle(entry, [Failure(code, message)] * len(entry.job.items), 0.0, 0.0)

    def _settle(
        self, entry: Entry, results: Sequence[Result], started: float, took: float, *, cached: bool = False
    ) -> None:
        """Answer all who wait for the entry, and remember its scores. `started` is in `time.monotonic()` seconds.

        `cached`: the scores were known where the job was sent.
        """
        self._forget(entry)
        scores = known(results)
        if entry.job.key is not None and len(scores) == len(results):
            self._cache.put(entry.job.key, scores)
        self._answer_waiters(entry, results, started, took, cached=cached)

    def _answer_waiters(
        self,
        entry: Entry,
        results: Sequence[Result],
        started: float,
        took: float,
        *,
        cached: bool = False,
        until: float = math.inf,
    ) -> None:
        """Answer those whose deadline is not after `until`."""
        complete = len(known(results)) == len(results)
        for number, waiter in enumerate(entry.waiters):
            if waiter.deadline <= until and not waiter.future.done():
                queue_s = max(0.0, started - waiter.since)
                if waiter.counted:
                    self._metrics.queue_seconds.labels(entry.reward).observe(queue_s)
                waiter.future.set_result(Outcome(tuple(results), cached or (number > 0 and complete), queue_s, took))

    def _forget(self, entry: Entry) -> None:
        self._entries.pop(entry, None)
        if entry.job.key is not None and self._by_key.get(entry.job.key) is entry:
            del self._by_key[entry.job.key]

    def _measure_rate(self, items: int, took: float, lanes: int) -> None:
        rate = items * lanes / max(took, 1e-6)
        self._items_per_s = rate if self._items_per_s is None else 0.8 * self._items_per_s + 0.2 * rate


def known(results: Sequence[Result]) -> tuple[Score, ...]:
    """Those of the results that trying again would not change."""
    return tuple(result for result in results if isinstance(result, Score) and result.cacheable)


def check_warmup(reward: str, results: Sequence[Result]) -> None:
    """Raise StartError with the reason unless every warm-up result is a score."""
    for result in results:
        if isinstance(result, Failure):
            raise StartError(f"the warm-up item of reward {reward!r} failed: {result.code}: {result.message}")
