"""Which URL is asked next, and when."""

from __future__ import annotations

import email.utils
import random
import time

import pytest

from trainer.rewards.endpoint import (
    BACKOFF_FIRST_S,
    BACKOFF_MOST_S,
    HEDGE_MIN_LATENCIES,
    EndpointPool,
    backoff_s,
    parse_retry_after,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pool(clock: Clock, count: int = 3, failures: int = 1) -> EndpointPool:
    return EndpointPool([f"http://host{i}" for i in range(count)], failures, 5.0, clock)


def test_least_outstanding_goes_first_and_ties_to_the_first(clock: Clock) -> None:
    urls = pool(clock)
    assert urls.pick() is urls.endpoints[0]
    urls.endpoints[0].outstanding = 2
    urls.endpoints[1].outstanding = 1
    assert urls.pick() is urls.endpoints[2]
    assert urls.pick(exclude=urls.endpoints[2]) is urls.endpoints[1]


def test_an_open_breaker_and_retry_after_take_a_url_out(clock: Clock) -> None:
    urls = pool(clock)
    first, second, third = urls.endpoints
    first.breaker.acquire()
    first.breaker.failure()
    second.not_before = clock.now + 2.0
    assert urls.pick() is third
    third.not_before = clock.now + 3.0
    assert urls.pick() is None
    assert urls.free_in() == (2.0, False)
    assert urls.pick(cooling=True) is second  # not the first: its breaker is open
    clock.now += 2.0
    assert urls.pick() is second


def test_open_breakers_alone_are_told_apart(clock: Clock) -> None:
    urls = pool(clock, count=1)
    urls.endpoints[0].breaker.acquire()
    urls.endpoints[0].breaker.failure()
    assert urls.free_in() == (5.0, True)
    clock.now += 5.0
    urls.endpoints[0].breaker.acquire()
    wait, open_breaker = urls.free_in()  # a trial is under way: look again soon, and count no attempt
    assert 0 < wait < 1
    assert not open_breaker


def test_reset_forgets_everything(clock: Clock) -> None:
    urls = pool(clock, count=1)
    urls.endpoints[0].breaker.acquire()
    urls.endpoints[0].breaker.failure()
    urls.endpoints[0].not_before = clock.now + 60
    urls.reset()
    assert urls.pick() is urls.endpoints[0]


def test_hedging_waits_for_enough_latencies(clock: Clock) -> None:
    urls = pool(clock)
    for i in range(HEDGE_MIN_LATENCIES - 1):
        urls.answered(float(i))
    assert urls.hedge_after_s() is None
    for i in range(HEDGE_MIN_LATENCIES - 1, 101):
        urls.answered(float(i))
    assert urls.hedge_after_s() == 95.0


def test_backoff_doubles_up_to_a_cap_and_is_spread() -> None:
    rng = random.Random(0)
    for failures, full in (
        (1, BACKOFF_FIRST_S),
        (2, 2 * BACKOFF_FIRST_S),
        (3, 4 * BACKOFF_FIRST_S),
        (30, BACKOFF_MOST_S),
    ):
        drawn = [backoff_s(failures, rng) for _ in range(200)]
        assert full / 2 <= min(drawn) < max(drawn) <= full
        assert max(drawn) - min(drawn) > 0.4 * full


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("3", 3.0), ("0.5", 0.5), ("-1", 0.0), ("soon", None), ("inf", None), ("nan", None)],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


def test_retry_after_as_a_date() -> None:
    seconds = parse_retry_after(email.utils.formatdate(time.time() + 30, usegmt=True))
    assert seconds is not None
    assert 27 < seconds < 31
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
