"""Which dispatcher serves a scorer."""

from __future__ import annotations

import inspect
from typing import cast

from services.common.batcher import Batcher
from services.common.cache import ScoreCache
from services.common.dispatch import Dispatcher
from services.common.metrics import Metrics
from services.common.scorer import AsyncScorer, Scorer
from services.common.settings import ServiceSettings
from services.common.streamer import Streamer


def make_dispatcher(
    scorer: Scorer | AsyncScorer, settings: ServiceSettings, cache: ScoreCache, metrics: Metrics
) -> Dispatcher:
    """A `Streamer` for a scorer whose `score` is a coroutine, else a `Batcher`."""
    if inspect.iscoroutinefunction(scorer.score):
        return Streamer(cast(AsyncScorer, scorer), queue_size=settings.queue_size, cache=cache, metrics=metrics)
    return Batcher(
        cast(Scorer, scorer),
        queue_size=settings.queue_size,
        max_wait_s=settings.max_wait_ms / 1000,
        cache=cache,
        metrics=metrics,
    )
