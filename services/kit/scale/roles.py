"""Puts together what a front, a worker, or a process that is both is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.kit.dispatch.base import Dispatcher
from services.kit.dispatch.cache import ScoreCache
from services.kit.dispatch.parts import Part
from services.kit.guard.memory import Hold
from services.kit.metrics import Metrics
from services.kit.scale.claims import Claims
from services.kit.scale.connection import Connection
from services.kit.scale.front import Front
from services.kit.scale.keys import Keys
from services.kit.scale.metrics import ScaleMetrics
from services.kit.scale.plane import Plane
from services.kit.scale.shared_cache import SharedCache
from services.kit.scale.watch import StreamWatch
from services.kit.scale.worker import Worker, WorkerLimits
from services.kit.scorer import AsyncScorer, Scorer
from services.kit.settings import ServiceSettings
from wire.images import ImageLimits

_ROOM_WHERE_ALL_START_AT_ONCE = 32


def make_scaled_parts(
    scorer: Scorer | AsyncScorer,
    local: Dispatcher | None,
    service_name: str,
    settings: ServiceSettings,
    cache: ScoreCache,
    metrics: Metrics,
    hold: Callable[[], Hold],
) -> tuple[Sequence[Part], Dispatcher]:
    """The parts in the order they are started, and the one that takes the requests' jobs.

    `local` owns the scorer; None for a front. A worker takes no requests; its `local` stands in.
    """
    assert settings.redis is not None
    rewards = dict(scorer.rewards)
    plane = Plane(
        Connection(settings.redis.get_secret_value(), settings.ca_file),
        Keys(settings.redis_prefix, service_name),
        rewards,
        ScaleMetrics(metrics.registry, rewards),
    )
    watch = StreamWatch(plane)
    shared = SharedCache(plane, cache, settings.cache_ttl_s)
    front = Front(
        plane,
        watch,
        shared,
        queue_size=settings.queue_size,
        max_depth=settings.max_stream_jobs,
        cache=cache,
        metrics=metrics,
    )
    if local is None:
        return (watch, front), front
    takes_requests = settings.role == "all"
    worker = Worker(
        plane,
        local,
        Claims(plane, watch, settings.visibility_timeout_s),
        watch,
        shared,
        WorkerLimits(
            room=settings.worker_jobs or _room(scorer),
            max_deliveries=settings.max_deliveries,
            visibility_timeout_s=settings.visibility_timeout_s,
            images=ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels),
        ),
        hold=hold,
        needed=lambda: takes_requests and front.in_flight > 0,
        decoded=front.decoded,
    )
    return ((watch, local, worker, front), front) if takes_requests else ((watch, local, worker), local)


def _room(scorer: Scorer | AsyncScorer) -> int:
    """Two batches: one is scored while the next waits. More would only keep other workers idle."""
    max_batch = getattr(scorer, "max_batch", None)
    if max_batch is None:
        return _ROOM_WHERE_ALL_START_AT_ONCE
    return 2 * int(max_batch) * max(1, int(getattr(scorer, "concurrency", 1)))
