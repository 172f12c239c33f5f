"""Fronts and workers in this process, and a consumer that takes jobs and says nothing."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx

from services.kit.dispatch.loops import end
from services.kit.metrics import Metrics
from services.kit.scale.claims import Claims, Delivery
from services.kit.scale.connection import Connection, RedisAway
from services.kit.scale.keys import Keys
from services.kit.scale.metrics import ScaleMetrics
from services.kit.scale.plane import Plane
from services.kit.scale.watch import StreamWatch
from wire.schema import ScorerInfo

KEYS = Keys("reward", "test")


class SilentWorker:
    """Counts as a live worker and takes jobs, but never answers, as one that was killed."""

    def __init__(self, url: str, rewards: Mapping[str, ScorerInfo], visibility_s: float) -> None:
        self.connection = Connection(url)
        self.rewards = rewards
        plane = Plane(self.connection, KEYS, rewards, ScaleMetrics(Metrics().registry, rewards))
        self.watch = StreamWatch(plane)
        self.claims = Claims(plane, self.watch, visibility_s)

    async def report(self) -> None:
        """Go on saying that it lives, but nothing of the jobs it took. Redis may be away meanwhile."""
        while True:
            with suppress(RedisAway):
                await self.connection.pipeline(self.claims.report([], takes_jobs=True))
            await asyncio.sleep(0.1)

    async def take(self, count: int) -> list[Delivery]:
        """Exactly so many jobs."""
        taken: list[Delivery] = []
        async with asyncio.timeout(10):
            while len(taken) < count:
                taken += await self.claims.read(count - len(taken))
        return taken

    async def take_over(self, count: int) -> list[Delivery]:
        """So many jobs that another has left."""
        async with asyncio.timeout(10):
            while len(found := await self.claims.overdue(count)) < count:
                await asyncio.sleep(0.02)
        return await self.claims.claim(found)


@asynccontextmanager
async def silent_worker(
    url: str, rewards: Mapping[str, ScorerInfo], visibility_s: float = 0.5
) -> AsyncIterator[SilentWorker]:
    worker = SilentWorker(url, rewards, visibility_s)
    await worker.watch.start()
    reporting = asyncio.create_task(worker.report())
    try:
        yield worker
    finally:
        await end(reporting)
        await worker.watch.stop()


async def until(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Wait until `holds()`; fails the test when it does not come to hold."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        await asyncio.sleep(0.01)


def counts(client: httpx.AsyncClient) -> Counter[str]:
    """The app's metrics, summed over their labels."""
    sums: Counter[str] = Counter()
    for line in client.app.state.service.render_metrics().decode().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            sums[name.partition("{")[0]] += float(value)
            sums[name] = float(value)
    return sums


def text_items(*prompts: str, **more: Any) -> list[dict[str, Any]]:
    """One item a prompt, under the ids 0, 1, ..."""
    return [{"id": str(number), "prompt": prompt, "completion": "", **more} for number, prompt in enumerate(prompts)]


async def ask(client: httpx.AsyncClient, items: Sequence[Mapping[str, Any]], **more: Any) -> list[dict[str, Any]]:
    """The results, in order."""
    answer = await client.post("/v1/score", json={"items": items, **more}, timeout=30)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results
