"""The score cache that all fronts and workers share, behind each process's own in memory.

It may only ever help: when Redis is away or a value is damaged, the job is scored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from services.kit.dispatch.cache import ScoreCache
from services.kit.scale.connection import Command, RedisAway, RedisRefused
from services.kit.scale.messages import DamagedMessage, decode_scores, encode_scores
from services.kit.scale.plane import Plane
from services.kit.scorer import Score

logger = logging.getLogger("services.redis")

_PATIENCE_S = 1.0


class SharedCache:
    """Reads and writes scores by content hash. Values are JSON and expire `ttl_s` after they were written."""

    def __init__(self, plane: Plane, local: ScoreCache, ttl_s: float) -> None:
        self._connection = plane.connection
        self._keys = plane.keys
        self._looked_up = plane.metrics.shared_cache
        self._local = local
        self._ttl_ms = int(ttl_s * 1000)

    async def fetch(self, sizes: Mapping[bytes, int]) -> None:
        """Bring the scores of jobs into the process's cache, as far as they are known: one MGET.

        `sizes`: how many items the job with a key has.
        """
        unknown = {key: items for key, items in sizes.items() if self._local.get(key) is None}
        if not unknown or not self._local.enabled:
            return
        try:
            async with asyncio.timeout(_PATIENCE_S):
                values = await self._connection.call("MGET", *(self._keys.scores(key) for key in unknown))
        except (RedisAway, RedisRefused, TimeoutError):
            self._looked_up.labels("away").inc(len(unknown))
            return
        for (key, items), value in zip(unknown.items(), values, strict=True):
            self._looked_up.labels(self._take(key, items, value)).inc()

    def command(self, key: bytes, scores: Sequence[Score]) -> Command:
        """What saves a job's scores, for a pipeline; tell `check` its answer."""
        return ("SET", self._keys.scores(key), encode_scores(key, scores), "PX", self._ttl_ms)

    def check(self, answer: object) -> None:
        """Count a write that failed."""
        if isinstance(answer, RedisRefused):
            self._looked_up.labels("unsaved").inc()
            logger.debug("a score was not saved", extra={"reason": str(answer)})

    def _take(self, key: bytes, items: int, value: bytes | None) -> str:
        if value is None:
            return "miss"
        try:
            self._local.put(key, decode_scores(key, value, items))
        except DamagedMessage as error:
            logger.warning("a value of the shared cache is damaged", extra={"reason": str(error)})
            return "damaged"
        return "hit"
