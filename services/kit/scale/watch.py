"""What every process knows of the streams: how deep they are, how fast they drain, which workers live, what time it is."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from services.kit.dispatch.base import StartError
from services.kit.dispatch.loops import Loop
from services.kit.dispatch.parts import Part
from services.kit.scale.connection import Command, RedisAway, RedisRefused
from services.kit.scale.keys import FRONT_TTL_MS, GROUP
from services.kit.scale.plane import Plane

logger = logging.getLogger("services.redis")

OLDEST_REDIS = 7  # flags of scripts
_POLL_S = 0.5
_RATE_WEIGHT = 0.2


class StreamWatch(Part):
    """Polls Redis twice a second. Owns the connection: it is opened first and closed last."""

    def __init__(self, plane: Plane) -> None:
        self._connection = plane.connection
        self._keys = plane.keys
        self._rewards = plane.rewards
        self._metrics = plane.metrics
        self._clock_ms = 0.0
        self._answered: tuple[float, int] | None = None
        self._jobs_per_s: float | None = None
        self._polling = Loop("watching Redis", self.poll, pause_s=_POLL_S, said_elsewhere=(RedisAway,))
        self.depth = 0
        self.workers: dict[str, int] = dict.fromkeys(plane.rewards, 0)

    async def start(self) -> None:
        """Raises StartError when Redis does not answer or does not let us in."""
        try:
            await self._check_server()
            await self._create_groups()
            await self.poll()
        except (RedisAway, RedisRefused) as error:
            raise StartError(f"{error}: start it, or correct --redis") from error
        self._polling.start()

    async def stop(self) -> None:
        await self._polling.end()
        await self._connection.close()

    @property
    def lost(self) -> str | None:
        """Why Redis cannot be used at present, or None."""
        return self._connection.failure or self._polling.failure

    def now_ms(self) -> float:
        """Redis's clock, which dates the jobs: machines need not agree on the time."""
        return self._clock_ms + time.monotonic() * 1000

    def drain_s(self) -> int:
        """Seconds until the jobs in the streams should be done at the recent rate, between 1 and 60."""
        if not self._jobs_per_s:
            return 1
        return min(60, max(1, math.ceil(self.depth / self._jobs_per_s)))

    async def poll(self) -> None:
        """Look once, and write once. Raises RedisAway or RedisRefused; a missing group is made again."""
        commands: list[Command] = [("TIME",), ("SET", self._keys.probe(), 1, "PX", FRONT_TTL_MS)]
        for info in self._rewards.values():
            commands += [
                ("XLEN", self._keys.jobs(info)),
                ("XPENDING", self._keys.jobs(info), GROUP),
                ("ZRANGE", self._keys.workers(info), 0, -1, "WITHSCORES"),
                ("GET", self._keys.answered(info)),
            ]
        answers = await self._connection.pipeline(commands)
        seconds, microseconds = _not_refused(answers[0])
        _not_refused(answers[1])
        self._connection.takes_writes()
        self._clock_ms = seconds * 1000 + microseconds / 1000 - time.monotonic() * 1000
        depth = answered = 0
        for number, name in enumerate(self._rewards):
            length, pending, workers, done = answers[2 + 4 * number : 6 + 4 * number]
            if isinstance(pending, RedisRefused) and str(pending).startswith("NOGROUP"):
                await self._create_groups()
                continue
            for answer in (length, pending, workers, done):
                _not_refused(answer)
            depth += length
            answered += int(done or 0)
            self.workers[name] = sum(float(until) > self.now_ms() for until in workers[1::2])
            self._metrics.depth.labels(name).set(length)
            self._metrics.pending.labels(name).set(pending["pending"])
            self._metrics.workers.labels(name).set(self.workers[name])
        self.depth = depth
        self._measure_rate(answered)

    def _measure_rate(self, answered: int) -> None:
        now, before = time.monotonic(), self._answered
        self._answered = (now, answered)
        if before is None or answered < before[1]:  # Redis has lost its last second, or all
            return
        rate = (answered - before[1]) / max(now - before[0], 1e-6)
        old = self._jobs_per_s
        self._jobs_per_s = rate if not old else (1 - _RATE_WEIGHT) * old + _RATE_WEIGHT * rate

    async def _create_groups(self) -> None:
        """Make the streams and their consumer groups, where they are missing: at first, and after a flush."""
        commands: list[Command] = [
            ("XGROUP", "CREATE", self._keys.jobs(info), GROUP, "0", "MKSTREAM") for info in self._rewards.values()
        ]
        for answer in await self._connection.pipeline(commands):
            if isinstance(answer, RedisRefused) and not str(answer).startswith("BUSYGROUP"):
                raise answer

    async def _check_server(self) -> None:
        version = (await self._connection.call("INFO", "server")).get("redis_version", "0")
        if int(str(version).partition(".")[0]) < OLDEST_REDIS:
            raise StartError(f"Redis {OLDEST_REDIS}.0 or newer is needed; {self._connection.url} is {version}")
        memory = await self._connection.call("INFO", "memory")
        policy = memory.get("maxmemory_policy", "")
        if memory.get("maxmemory") and policy.startswith("allkeys"):
            logger.warning(
                "Redis may evict job streams: set its maxmemory-policy to volatile-lru, which evicts cached scores only",
                extra={"maxmemory_policy": policy},
            )


def _not_refused(answer: Any) -> Any:
    """The answer of a command of a pipeline. Raises RedisRefused."""
    if isinstance(answer, RedisRefused):
        raise answer
    return answer
