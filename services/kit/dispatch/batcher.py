"""Cross-request dynamic micro-batching for scorers that compute in this process.

Scoring happens on lanes: threads of which each runs one batch at a time. A scorer has one lane, unless it says with
`concurrency` that it takes several calls at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict

from services.kit.dispatch.base import Dispatcher, Entry, Outcome, StartError, check_warmup
from services.kit.dispatch.cache import ScoreCache
from services.kit.dispatch.isolation import NOT_AWAITED, score_isolated
from services.kit.dispatch.lanes import Lane
from services.kit.metrics import Metrics
from services.kit.scorer import Failure, Result, Scorer
from wire.schema import ErrorCode

logger = logging.getLogger("services.batcher")


class Batcher(Dispatcher):
    """Owns a scorer: loads it, feeds it batches, closes it.

    A reward that compares gets one group a call: two requests may use the same group id for different groups.
    """

    def __init__(
        self, scorer: Scorer, *, queue_size: int, max_wait_s: float, cache: ScoreCache, metrics: Metrics
    ) -> None:
        super().__init__(queue_size=queue_size, cache=cache, metrics=metrics)
        self._scorer = scorer
        self._max_wait_s = max_wait_s
        self._max_batch = {name: 1 if info.grouped else scorer.max_batch for name, info in scorer.rewards.items()}
        self._concurrency = max(1, int(getattr(scorer, "concurrency", 1)))
        self._lanes = [Lane(f"scorer-{number}") for number in range(self._concurrency)]
        self._idle: list[Lane] = []
        self._queues: dict[str, OrderedDict[Entry, None]] = {name: OrderedDict() for name in scorer.rewards}
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
            check_warmup(reward, await lane.run(lambda r=reward, i=item: score_isolated(self._scorer, r, [i])))  # type: ignore[misc]
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
        super().abandon()
        for queue in self._queues.values():
            queue.clear()

    @property
    def lost(self) -> str | None:
        """Why the scorer can score nothing at present, where it has a `failure` (a pool without processes)."""
        reason: str | None = getattr(self._scorer, "failure", None)
        return reason

    async def recover(self) -> None:
        """Let a scorer that lost its workers try to come back."""
        recover = self._scorer.recover  # type: ignore[attr-defined]  # comes with `failure`
        await asyncio.get_running_loop().run_in_executor(None, recover)

    @property
    def restarts(self) -> int:
        return int(getattr(self._scorer, "restarts", 0))

    def _accept(self, entry: Entry) -> None:
        self._queues[entry.reward][entry] = None
        self._depth_changed()
        if self._timer is None:  # not at once: the request's other items are submitted before the loop turns
            self._timer = asyncio.get_running_loop().call_soon(self._pump)

    def _withdraw(self, entry: Entry) -> None:
        queue = self._queues[entry.reward]
        if entry in queue:
            del queue[entry]
            self._forget(entry)
            self._depth_changed()

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
        return len(self._queues[reward]) >= self._max_batch[reward] or now >= since + self._max_wait_s

    def _hand_out(self, reward: str) -> None:
        """Spread a reward's queue over the idle lanes in equal parts, each at most a full batch."""
        queue = self._queues[reward]
        size = min(self._max_batch[reward], math.ceil(len(queue) / self._concurrency))
        for _ in range(len(self._idle)):
            batch = self._take(queue, size)
            if not batch:
                return
            self._run(self._idle.pop(), reward, batch)

    def _take(self, queue: OrderedDict[Entry, None], size: int) -> list[Entry]:
        now = time.monotonic()
        batch: list[Entry] = []
        while queue and len(batch) < size:
            entry, _ = queue.popitem(last=False)
            late = Failure(ErrorCode.TIMEOUT, "the deadline passed while the item was queued")
            for waiter in entry.waiters:
                if waiter.deadline <= now and not waiter.future.done():
                    waiter.future.set_result(Outcome((late,) * len(entry.job.items), queue_s=now - waiter.since))
            if entry.abandoned:
                self._forget(entry)
            else:
                batch.append(entry)
        self._depth_changed()
        return batch

    def _run(self, lane: Lane, reward: str, batch: list[Entry]) -> None:
        started = time.monotonic()
        items = [item for entry in batch for item in entry.job.items]
        awaited = [entry.is_awaited for entry in batch for _ in entry.job.items]
        future = lane.run(lambda: score_isolated(self._scorer, reward, items, awaited))
        self._metrics.batch_items.labels(reward).observe(len(items))

        def on_done(done: asyncio.Future[list[Result]]) -> None:
            took = time.monotonic() - started
            error = done.exception()
            results: list[Result] = (
                done.result()
                if error is None
                else [Failure(ErrorCode.INTERNAL, f"the scorer raised {error}")] * len(items)
            )
            try:
                self._metrics.compute_seconds.labels(reward).observe(took)
                self._measure_rate(len(items), took, self._concurrency)
                rest = iter(results)
                for entry in batch:
                    own = [next(rest) for _ in entry.job.items]
                    if NOT_AWAITED in own and entry.is_awaited():  # someone joined when it had been dropped
                        self._queues[reward][entry] = None
                    else:
                        self._settle(entry, own, started, took)
            except Exception as error:  # a bug of ours may cost neither the lane nor the time of who waits
                logger.exception("answering a batch raised")
                for entry in batch:
                    if entry in self._entries:
                        self._fail(entry, ErrorCode.INTERNAL, f"answering raised {type(error).__name__}: {error}")
            if not self._stopped:
                self._idle.append(lane)
                self._pump()

        future.add_done_callback(on_done)

    def _depth_changed(self) -> None:
        self._metrics.queue_depth.set(sum(len(queue) for queue in self._queues.values()))
