"""Prometheus metrics of one app, in a registry of its own, so that several apps live in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """What a service measures. Rates such as the parse-failure share are quotients of these counters."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("reward_requests", "Requests by path and status.", ["path", "status"], registry=r)
        self.request_seconds = Histogram(
            "reward_request_seconds", "Time of a scoring request.", registry=r, buckets=_SECONDS
        )
        self.items = Counter(
            "reward_items", "Results by reward and code (ok or an error).", ["reward", "code"], registry=r
        )
        self.queue_seconds = Histogram(
            "reward_item_queue_seconds",
            "Time from arrival in the queue to the batch.",
            ["reward"],
            registry=r,
            buckets=_SECONDS,
        )
        self.compute_seconds = Histogram(
            "reward_batch_seconds", "Time of one batch in the scorer.", ["reward"], registry=r, buckets=_SECONDS
        )
        self.batch_items = Histogram("reward_batch_items", "Items in a batch.", ["reward"], registry=r, buckets=_ITEMS)
        self.queue_depth = Gauge("reward_queue_depth", "Items waiting for a batch.", registry=r)
        self.in_flight = Gauge("reward_items_in_flight", "Items accepted and not yet answered.", registry=r)
        self.memory_bytes = Gauge("reward_memory_bytes", "Bodies and decoded images of requests in flight.", registry=r)
        self.cache_hits = Counter("reward_cache_hits", "Items answered from the cache.", ["reward"], registry=r)
        self.cache_misses = Counter("reward_cache_misses", "Items that had to be scored.", ["reward"], registry=r)
        self.coalesced = Counter(
            "reward_coalesced", "Items answered by an identical item already in flight.", ["reward"], registry=r
        )
        self.groups = Counter("reward_groups", "Groups with at least two scores.", ["reward"], registry=r)
        self.constant_groups = Counter(
            "reward_constant_groups", "Groups whose scores were all equal: no learning signal.", ["reward"], registry=r
        )
        self.worker_restarts = Gauge("reward_worker_restarts", "Worker processes replaced since the start.", registry=r)
        self.audit_failures = Counter("reward_audit_failures", "Lines the audit log lost.", registry=r)
        self.ready = Gauge("reward_ready", "1 when the service is ready, else 0.", registry=r)
        self.started = Gauge("reward_start_time_seconds", "When the service was started, as Unix time.", registry=r)
        self.build = Gauge("reward_build", "1; the labels name what runs.", ["service", "version", "role"], registry=r)
        self.allowance = Gauge(
            "reward_allowance", "What a client with limits may ask for in a minute.", ["client", "unit"], registry=r
        )
        self.allowance_left = Gauge(
            "reward_allowance_left", "What is left of it now; it fills up steadily.", ["client", "unit"], registry=r
        )

    def render(self) -> bytes:
        return generate_latest(self.registry)
