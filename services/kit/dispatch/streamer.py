"""The dispatcher of scorers that ask a server. All jobs run at once; the scorer limits how many calls the server sees."""

from __future__ import annotations

import asyncio
import logging
import time

from services.kit.dispatch.base import Dispatcher, Entry, StartError, check_warmup, known
from services.kit.dispatch.cache import ScoreCache
from services.kit.dispatch.isolation import score_isolated_async
from services.kit.metrics import Metrics
from services.kit.scorer import AsyncScorer
from wire.schema import ErrorCode

logger = logging.getLogger("services.streamer")

_WARMUP_S = 300.0
_EARLY_S = 1.0  # scorers stop that long before the deadline, so that what is known by then is answered in time


class Streamer(Dispatcher):
    """Owns an `AsyncScorer`. Every job is a task of its own, so groups never wait for one another's stragglers.

    A job that nobody waits for any more is cancelled, and with it its calls to the server.
    """

    def __init__(self, scorer: AsyncScorer, *, queue_size: int, cache: ScoreCache, metrics: Metrics) -> None:
        super().__init__(queue_size=queue_size, cache=cache, metrics=metrics)
        self._scorer = scorer
        self._tasks: dict[Entry, asyncio.Task[None]] = {}
        self._loaded = False

    async def start(self) -> None:
        """Load the scorer and let it score its warm-up jobs. Raises StartError with the reason."""
        try:
            await self._scorer.load()
        except Exception as error:
            raise StartError(f"loading failed: {error or type(error).__name__}") from error
        self._loaded = True
        for reward, items in self._scorer.warmup():
            deadline = time.monotonic() + _WARMUP_S
            check_warmup(reward, await score_isolated_async(self._scorer, reward, items, deadline))

    async def stop(self) -> None:
        """Abandon what still waits, cancel what runs, close the scorer."""
        self.abandon()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._loaded:
            self._loaded = False
            try:
                await self._scorer.close()
            except Exception:
                logger.exception("closing the scorer raised")

    @property
    def lost(self) -> str | None:
        return self.upstream_lost

    @property
    def upstream_lost(self) -> str | None:
        """What the scorer says in its `failure`, where it has one."""
        reason: str | None = getattr(self._scorer, "failure", None)
        return reason

    async def recover(self) -> None:
        """Let a scorer whose server was lost look whether it is back."""
        await self._scorer.recover()  # type: ignore[attr-defined]  # comes with `failure`

    def _accept(self, entry: Entry) -> None:
        task = asyncio.get_running_loop().create_task(self._run(entry))
        self._tasks[entry] = task
        task.add_done_callback(lambda done: self._ended(entry, done))

    def _ended(self, entry: Entry, task: asyncio.Task[None]) -> None:
        self._tasks.pop(entry, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:  # a bug of ours: who waits must not wait until the deadline
            logger.error("a job raised", exc_info=error)
            self._fail(entry, ErrorCode.INTERNAL, f"scoring raised {type(error).__name__}: {error}")

    def _withdraw(self, entry: Entry) -> None:
        self._forget(entry)
        task = self._tasks.get(entry)
        if task is not None:
            task.cancel()

    async def _run(self, entry: Entry) -> None:
        """Score the job; once more when its time was over and someone has joined who waits longer."""
        items = entry.job.items
        while True:
            started, deadline = time.monotonic(), entry.deadline
            results = await score_isolated_async(self._scorer, entry.reward, items, deadline)
            took = time.monotonic() - started
            self._metrics.batch_items.labels(entry.reward).observe(len(items))
            self._metrics.compute_seconds.labels(entry.reward).observe(took)
            self._measure_rate(len(items), took, len(self._tasks))
            in_time = len(known(results)) == len(items) or started + took < deadline - _EARLY_S
            if in_time or entry.deadline <= deadline + _EARLY_S:
                self._settle(entry, results, started, took)
                return
            self._answer_waiters(entry, results, started, took, until=deadline)
