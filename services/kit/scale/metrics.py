"""What is measured of the streams and the shared cache, in the registry of the service's other metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge


class ScaleMetrics:
    """`reward_stream_depth` is what to scale workers on: the jobs of all fronts that have no answer yet."""

    def __init__(self, registry: CollectorRegistry, rewards: Iterable[str]) -> None:
        r, by = registry, ["reward"]
        self.depth = Gauge("reward_stream_depth", "Jobs in the stream: waiting or being scored.", by, registry=r)
        self.pending = Gauge("reward_stream_pending", "Jobs of the stream that a worker holds.", by, registry=r)
        self.workers = Gauge("reward_stream_workers", "Workers that reported lately.", by, registry=r)
        self.held = Gauge("reward_stream_held", "Jobs that this worker holds.", registry=r)
        self.claimed = Counter("reward_stream_claimed", "Jobs this worker took from the streams.", by, registry=r)
        self.redelivered = Counter(
            "reward_stream_redelivered",
            "Jobs this worker took over from one that fell silent or stopped.",
            by,
            registry=r,
        )
        self.duplicates = Counter(
            "reward_stream_duplicates", "Answers dropped: the job had one already or was withdrawn.", registry=r
        )
        self.poison = Counter(
            "reward_stream_poison", "Jobs answered `internal` after too many deliveries.", by, registry=r
        )
        self.resent = Counter("reward_stream_resent", "Jobs this front sent again: Redis lost them.", by, registry=r)
        self.damaged = Counter("reward_stream_damaged", "Messages that could not be read.", registry=r)
        self.shared_cache = Counter(
            "reward_shared_cache",
            "Look-ups in the shared cache: hit, miss, damaged (read as a miss) or away; failed writes: unsaved.",
            ["outcome"],
            registry=r,
        )
        for reward in rewards:  # a counter that is not there yet cannot be seen to rise
            for counter in (self.claimed, self.redelivered, self.poison, self.resent):
                counter.labels(reward)
        for outcome in ("hit", "miss", "damaged", "away", "unsaved"):
            self.shared_cache.labels(outcome)
