"""Chooses the parts of a service: a dispatcher that owns the scorer, or with Redis a front, a worker, or both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import cast

from services.kit.dispatch.base import Dispatcher
from services.kit.dispatch.batcher import Batcher
from services.kit.dispatch.cache import ScoreCache
from services.kit.dispatch.parts import Part
from services.kit.dispatch.streamer import Streamer
from services.kit.guard.memory import Hold
from services.kit.metrics import Metrics
from services.kit.scorer import AsyncScorer, Scorer
from services.kit.settings import ServiceSettings


def make_parts(
    scorer: Scorer | AsyncScorer,
    service_name: str,
    settings: ServiceSettings,
    cache: ScoreCache,
    metrics: Metrics,
    hold: Callable[[], Hold],
) -> tuple[Sequence[Part], Dispatcher]:
    """The service's parts in the order they are started, and the one of them that takes the requests' jobs.

    `hold` gives a share of the process's memory budget.
    """
    local = None if settings.role == "front" else _owner(scorer, settings, cache, metrics)
    if settings.redis is not None:
        from services.kit.scale.roles import make_scaled_parts  # the only way to Redis

        return make_scaled_parts(scorer, local, service_name, settings, cache, metrics, hold)
    assert local is not None, "the settings refuse a front without Redis"
    return (local,), local


def _owner(
    scorer: Scorer | AsyncScorer, settings: ServiceSettings, cache: ScoreCache, metrics: Metrics
) -> Batcher | Streamer:
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
