"""What is measured of a judge. The shares (ties, parse failures, position bias) are quotients of these counters."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.registry import Collector

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 60, 120, 300)


class JudgeMetrics:
    """Collectors that a scorer names in its `collectors`, so that the kit shows them in `/metrics`."""

    def __init__(self) -> None:
        self.calls = Counter(
            "reward_judge_calls",
            "Judgements by reward and outcome: ok, tie, parse_error, truncated, timeout, upstream.",
            ["reward", "outcome"],
            registry=None,
        )
        self.wins = Counter(
            "reward_judge_wins",
            "Decided comparisons by the position of the winner: far from one half, the judge looks at the order.",
            ["reward", "position"],
            registry=None,
        )
        self.retries = Counter("reward_judge_retries", "Calls that were tried again.", registry=None)
        self.completion_tokens = Counter("reward_judge_completion_tokens", "Tokens the judge wrote.", registry=None)
        self.in_flight = Gauge("reward_judge_in_flight", "Calls the server is working on.", registry=None)
        self.slots = Gauge("reward_judge_slots", "Calls that the server may work on at a time.", registry=None)
        self.call_seconds = Histogram(
            "reward_judge_call_seconds",
            "Time of an answered call, with its wait for a slot and its retries.",
            registry=None,
            buckets=_SECONDS,
        )

    @property
    def collectors(self) -> Sequence[Collector]:
        return (
            self.calls,
            self.wins,
            self.retries,
            self.completion_tokens,
            self.in_flight,
            self.slots,
            self.call_seconds,
        )
