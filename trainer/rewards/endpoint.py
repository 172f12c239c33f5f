"""One service's URLs: which one is asked next, and how long to wait before asking again."""

from __future__ import annotations

import email.utils
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.rewards.breaker import CircuitBreaker

BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 8.0
HEDGE_MIN_LATENCIES = 20


@dataclass(eq=False)
class Endpoint:
    """One URL of a service.

    Attributes:
        outstanding: requests under way.
        not_before: clock time before which the service asked not to be called (Retry-After).
    """

    url: str
    breaker: CircuitBreaker
    outstanding: int = 0
    not_before: float = 0.0


class EndpointPool:
    """The URLs of one service. Not thread-safe: one event loop owns it."""

    def __init__(
        self, urls: Sequence[str], failures: int, reset_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.endpoints = [Endpoint(url, CircuitBreaker(failures, reset_s, clock)) for url in urls]
        self._latencies_s: deque[float] = deque(maxlen=200)
        self._answered_at = clock()

    def pick(self, exclude: Endpoint | None = None, *, cooling: bool = False) -> Endpoint | None:
        """The URL with the fewest requests under way that may be asked now, or None. Ties go to the first.

        `cooling` takes those in, too, that asked not to be called yet.
        """
        now = self._clock()
        free = [
            e
            for e in self.endpoints
            if e is not exclude and (cooling or e.not_before <= now) and e.breaker.would_allow()
        ]
        return min(free, key=lambda e: e.outstanding, default=None)

    def free_in(self) -> tuple[float, bool]:
        """(seconds until some URL may be asked, whether open breakers alone are in the way).

        A trial under way has no known end: then 0.1, to look again.
        """
        now = self._clock()
        waits = []
        for endpoint in self.endpoints:
            trial = not endpoint.breaker.would_allow() and endpoint.breaker.retry_in() == 0
            wait = max(endpoint.breaker.retry_in(), endpoint.not_before - now, 0.1 if trial else 0.0)
            waits.append((wait, endpoint.breaker.retry_in() > 0))
        return min(waits)

    def is_gone(self, since: float, for_s: float) -> bool:
        """Whether every URL is out for its failures, and none gave a good answer for `for_s` seconds from `since` on."""
        quiet_s = self._clock() - max(since, self._answered_at)
        return quiet_s >= for_s and all(endpoint.breaker.state == "open" for endpoint in self.endpoints)

    def answered(self, seconds: float) -> None:
        """Remember a good answer and its latency."""
        self._answered_at = self._clock()
        self._latencies_s.append(seconds)

    def hedge_after_s(self) -> float | None:
        """The 95th percentile of the last latencies; None until there are enough of them."""
        if len(self._latencies_s) < HEDGE_MIN_LATENCIES:
            return None
        ordered = sorted(self._latencies_s)
        return ordered[int(0.95 * (len(ordered) - 1))]

    def reset(self) -> None:
        """The service is known to work again: forget what was held against its URLs."""
        for endpoint in self.endpoints:
            endpoint.breaker.reset()
            endpoint.not_before = 0.0


def backoff_s(failures: int, rng: random.Random) -> float:
    """Wait after the n-th failure (from 1): doubles, is capped, and is spread over its upper half."""
    full = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** (failures - 1))
    return full * rng.uniform(0.5, 1.0)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (a number or an HTTP date); None when it is missing or makes no sense."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
