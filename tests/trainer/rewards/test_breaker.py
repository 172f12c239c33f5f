"""The circuit breaker, with a clock that only the test moves."""

from __future__ import annotations

import pytest

from trainer.rewards.breaker import CircuitBreaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(breaker: CircuitBreaker) -> bool:
    breaker.acquire()
    return breaker.failure()


def test_opens_after_that_many_failures_in_a_row(clock: Clock) -> None:
    breaker = CircuitBreaker(3, 5.0, clock)
    assert [fail(breaker), fail(breaker)] == [False, False]
    breaker.acquire()
    breaker.success()  # the row is broken: it counts from one again
    assert [fail(breaker), fail(breaker), fail(breaker)] == [False, False, True]
    assert breaker.state == "open"
    assert not breaker.would_allow()
    assert breaker.retry_in() == 5.0


def test_lets_one_trial_through_after_the_rest(clock: Clock) -> None:
    breaker = CircuitBreaker(1, 5.0, clock)
    fail(breaker)
    clock.now += 4.9
    assert not breaker.would_allow()
    clock.now += 0.2
    assert breaker.state == "half_open"
    breaker.acquire()
    assert not breaker.would_allow()  # one trial at a time
    breaker.success()
    assert breaker.state == "closed"
    assert breaker.would_allow()


def test_a_failed_trial_opens_it_again(clock: Clock) -> None:
    breaker = CircuitBreaker(3, 5.0, clock)
    for _ in range(3):
        fail(breaker)
    clock.now += 5.0
    assert not fail(breaker)  # it was open already, so this is no news
    assert breaker.state == "open"
    assert breaker.retry_in() == 5.0


def test_a_cancelled_trial_says_nothing(clock: Clock) -> None:
    breaker = CircuitBreaker(1, 5.0, clock)
    fail(breaker)
    clock.now += 5.0
    breaker.acquire()
    breaker.release()
    assert breaker.would_allow()
    assert breaker.state == "half_open"


def test_late_failures_of_an_open_breaker_are_no_news(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 5.0, clock)
    for _ in range(3):
        breaker.acquire()
    assert [breaker.failure(), breaker.failure(), breaker.failure()] == [False, True, False]
