"""How much each client may ask for. A client is a named token; its limits stand beside it in the token file.

Each limit is a token bucket: it holds one minute's allowance, is refilled steadily, and what does not fit now fits
later. Buckets belong to one process: several fronts of one service admit that many times the allowance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from services.kit.errors import ApiError


@dataclass(frozen=True)
class Allowance:
    """What a client may use in a minute; None is without limit."""

    requests_per_minute: int | None = None
    items_per_minute: int | None = None


class Bucket:
    """Room for `per_minute` units, full at first, refilled at that rate. `clock` is in seconds."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = per_minute
        self._level = float(per_minute)
        self._clock = clock
        self._since = clock()

    def left(self) -> float:
        """Units that may be taken now."""
        now = self._clock()
        self._level = min(self.capacity, self._level + (now - self._since) * self.capacity / 60)
        self._since = now
        return self._level

    def take(self, count: int) -> float:
        """Take `count` units and return 0; or take none and return the seconds until they will be there."""
        self.left()
        if count <= self._level:
            self._level -= count
            return 0.0
        return (count - self._level) * 60 / self.capacity


class RateLimits:
    """The buckets of all clients. For the event loop alone, so there are no locks."""

    def __init__(self, allowances: Mapping[str, Allowance], clock: Callable[[], float] = time.monotonic) -> None:
        limits = allowances.items()
        self._requests = {
            name: Bucket(limit.requests_per_minute, clock) for name, limit in limits if limit.requests_per_minute
        }
        self._items = {name: Bucket(limit.items_per_minute, clock) for name, limit in limits if limit.items_per_minute}

    def left(self) -> Iterator[tuple[str, str, int, int]]:
        """For each limit its client, its unit, what a minute allows, and the whole units that are left of it now."""
        for unit, buckets in (("requests", self._requests), ("items", self._items)):
            for client, bucket in buckets.items():
                yield client, unit, bucket.capacity, math.floor(bucket.left())

    def take_request(self, client: str | None) -> None:
        """Count a request. Raises ApiError 429."""
        _take(self._requests, client, 1, "requests")

    def take_items(self, client: str | None, count: int) -> None:
        """Count a request's items. Raises ApiError: 429, or 413 for more than a minute's allowance at once."""
        _take(self._items, client, count, "items")


def _take(buckets: Mapping[str, Bucket], client: str | None, count: int, unit: str) -> None:
    bucket = buckets.get(client) if client is not None else None
    if bucket is None:
        return
    if count > bucket.capacity:
        raise ApiError(
            413,
            f"{count} {unit} at once; {client!r} may send {bucket.capacity} a minute: split the request",
            field=unit,
        )
    wait_s = math.ceil(bucket.take(count))
    if wait_s > 0:
        raise ApiError(
            429,
            f"{client!r} may send {bucket.capacity} {unit} a minute; try again in {wait_s} s",
            code="rate_limited",
            headers={"Retry-After": str(wait_s)},
        )
