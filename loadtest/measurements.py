"""What was measured, and what it comes to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# A sender this late is no longer sending at the asked rate.
MAX_LAG_S = 0.1


@dataclass(frozen=True)
class Exchange:
    """One request. `due`, `sent` and `done` are seconds from the start; its latency counts from `due`.

    `failed` has the codes of the items without a score. `answered`: a response with results came. `queue_ms` and
    `compute_ms` are the largest that the service said of an item that was not cached.
    """

    due: float
    sent: float
    done: float
    items: int
    answered: bool
    failed: Mapping[str, int] = field(default_factory=dict)
    cached: int = 0
    queue_ms: float | None = None
    compute_ms: float | None = None

    @property
    def latency_ms(self) -> float:
        return 1000 * (self.done - self.due)


@dataclass(frozen=True)
class Measurements:
    """All exchanges of a test that lasted `seconds`, and the items of requests that were due and never sent."""

    exchanges: Sequence[Exchange]
    asked_rate: float
    seconds: float
    not_sent: int = 0
    items_not_sent: int = 0

    def latencies_ms(self) -> list[float]:
        """Of the requests that were answered with results, sorted."""
        return sorted(each.latency_ms for each in self.exchanges if each.answered)

    def strict_percentile_ms(self, share: float) -> float:
        """A percentile over all requests that were due: one without results counts as infinitely late."""
        latencies = self.latencies_ms()
        missing = len(self.exchanges) + self.not_sent - len(latencies)
        return percentile([*latencies, *[math.inf] * missing], share)

    def errors(self) -> Counter[str]:
        """Items without a score, by code; the most frequent first."""
        counts: Counter[str] = Counter()
        for each in self.exchanges:
            counts.update(each.failed)
        if self.items_not_sent:
            counts["not_sent"] = self.items_not_sent
        return Counter(dict(counts.most_common()))

    def error_share(self) -> float:
        """Of all items that were due, the share without a score; 0 to 1."""
        due = sum(each.items for each in self.exchanges) + self.items_not_sent
        return sum(self.errors().values()) / due if due else 0.0

    def kept_rate(self) -> bool:
        """Whether the requests left when they were due."""
        return not self.not_sent and self._lag_ms(0.99) <= 1000 * MAX_LAG_S

    def summary(self) -> dict[str, Any]:
        """All numbers. Latencies and times in milliseconds, rates per second; None where nothing was measured."""
        latencies = self.latencies_ms()
        items = sum(each.items for each in self.exchanges)
        scored = items - sum(sum(each.failed.values()) for each in self.exchanges)
        queue = sorted(each.queue_ms for each in self.exchanges if each.queue_ms is not None)
        compute = sorted(each.compute_ms for each in self.exchanges if each.compute_ms is not None)
        return {
            "seconds": self.seconds,
            "requests": {
                "due": len(self.exchanges) + self.not_sent,
                "sent": len(self.exchanges),
                "answered": len(latencies),
            },
            "rate": {
                "asked": self.asked_rate,
                "sent": self._per_s(len(self.exchanges)),
                "answered": self._per_s(len(latencies)),
                "scored_items": self._per_s(scored),
                "kept": self.kept_rate(),
            },
            "latency_ms": _spread(latencies),
            "service_queue_ms": _spread(queue),
            "service_compute_ms": _spread(compute),
            "send_lag_ms": {"p50": self._lag_ms(0.5), "p99": self._lag_ms(0.99)},
            "items": {"sent": items, "scored": scored, "cached": sum(each.cached for each in self.exchanges)},
            "errors": dict(self.errors()),
            "error_share": self.error_share(),
        }

    def _lag_ms(self, share: float) -> float:
        return percentile(sorted(1000 * (each.sent - each.due) for each in self.exchanges) or [0.0], share)

    def _per_s(self, count: int) -> float:
        return count / self.seconds if self.seconds else 0.0


def rate_sentence(summary: Mapping[str, Any]) -> str:
    """Why the asked rate was not kept, and what to do."""
    requests, lag = summary["requests"], summary["send_lag_ms"]["p99"]
    return (
        f"the rate was not kept: {requests['due'] - requests['sent']} requests never left, and one in a hundred left "
        f"{lag:.0f} ms late or more. Either {summary['about']['max_outstanding']} unanswered requests were the limit "
        f"(--max-outstanding), or this machine cannot send that fast."
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the sorted values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _spread(ordered: Sequence[float]) -> dict[str, float | None]:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: percentile(ordered, share) if ordered else None for name, share in shares.items()}
