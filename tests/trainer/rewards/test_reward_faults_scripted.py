"""Failures as the client sees them: what is retried, how often, how long, and what becomes of the scores."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.reward_servers import Reply, good, make_samples
from trainer.types import Scores


def ask(client: Any, count: int = 4, micro_batches: int = 1) -> Scores:
    batch = client.batch()
    for i in range(micro_batches):
        batch.submit(make_samples(count, {"r": 1.0}, first=i * count))
    return batch.collect()


def fail_first(times: int, reply: Reply) -> Any:
    """A server that gives `reply` to its first requests and then answers well."""
    seen = iter(range(10_000))
    return lambda request: reply if next(seen) < times else good(request)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_retried_until_it_answers(scripted: Any, connect: Any, status: int) -> None:
    server = scripted(fail_first(2, Reply({}, status)))
    scores = ask(connect(server, max_attempts=3))
    assert scores.valid_BR.all()
    assert scores.failures["r"] == Counter()
    assert len(server.requests) == 3


@pytest.mark.parametrize(("status", "code"), [(502, "unavailable"), (503, "unavailable"), (504, "timeout")])
def test_attempts_run_out(scripted: Any, connect: Any, status: int, code: str) -> None:
    server = scripted(lambda _: Reply({}, status))
    client = connect(server, max_attempts=3)
    scores = ask(client)
    assert not scores.valid_BR.any()
    assert (scores.scores_BR == 0).all()
    assert scores.failures["r"] == Counter({code: 4})
    assert len(server.requests) == 3
    assert f"answered {status}" in client.said("failure")[0]


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "refused"), (401, "refused"), (404, "refused"), (413, "refused"), (422, "refused"), (500, "server_error"),
     (307, "server_error"), (204, "server_error")],
)  # fmt: skip
def test_not_retried(scripted: Any, connect: Any, status: int, code: str) -> None:
    body = {"error": {"code": "bad", "message": "no such thing", "field": "items.0.prompt"}}
    server = scripted(lambda _: Reply(b"" if status == 204 else body, status, {"location": "/elsewhere"}))
    client = connect(server)
    scores = ask(client)
    assert scores.failures["r"] == Counter({code: 4})
    assert len(server.requests) == 1
    if status != 204:
        assert "no such thing (field items.0.prompt)" in client.said("failure")[0]
        assert (
            scores.details[0]["r"]["error"]["message"]
            == f"{server.url} answered {status}: no such thing (field items.0.prompt)"
        )


def test_a_full_queue_is_waited_out_beyond_max_attempts(scripted: Any, connect: Any) -> None:
    server = scripted(fail_first(6, Reply({}, 429, {"retry-after": "0.05"})))
    scores = ask(connect(server, max_attempts=2))
    assert scores.valid_BR.all()
    assert len(server.requests) == 7


def test_retry_after_is_honoured(scripted: Any, connect: Any) -> None:
    times: list[float] = []

    def behave(request: dict[str, Any]) -> Reply:
        times.append(time.monotonic())
        return Reply({}, 429, {"retry-after": "0.6"}) if len(times) == 1 else good(request)

    assert ask(connect(scripted(behave))).valid_BR.all()
    assert 0.6 <= times[1] - times[0] < 5


def test_a_retry_after_beyond_the_deadline_is_not_waited_for(scripted: Any, connect: Any) -> None:
    server = scripted(lambda _: Reply({}, 429, {"retry-after": "60"}))
    started = time.monotonic()
    scores = ask(connect(server, timeout_s=30.0))
    assert time.monotonic() - started < 20
    assert scores.failures["r"] == Counter(overloaded=4)
    assert len(server.requests) == 1


def test_a_request_does_not_give_up_because_another_was_told_to_wait(scripted: Any, connect: Any) -> None:
    """The first is refused for longer than any deadline; the second was never refused itself, so it asks."""

    def behave(request: dict[str, Any]) -> Reply:
        return Reply({}, 429, {"retry-after": "60"}) if request["items"][0]["id"] == "s0" else good(request)

    client = connect(scripted(behave))
    assert ask(client).failures["r"] == Counter(overloaded=4)
    batch = client.batch()
    batch.submit(make_samples(4, {"r": 1.0}, first=4))
    assert batch.collect().valid_BR.all()


def test_a_full_queue_that_says_zero_seconds_is_not_hammered(scripted: Any, connect: Any) -> None:
    server = scripted(lambda _: Reply({}, 429, {"retry-after": "0"}))
    assert ask(connect(server, timeout_s=1.0)).failures["r"].total() == 4
    assert 2 <= len(server.requests) <= 11


def test_a_full_url_is_left_for_another(scripted: Any, connect: Any) -> None:
    full, free = scripted(lambda _: Reply({}, 429, {"retry-after": "60"})), scripted()
    scores = ask(connect(full, free), micro_batches=6)
    assert scores.valid_BR.all()
    assert len(free.requests) == 6


def test_the_deadline_is_hard(scripted: Any, connect: Any) -> None:
    """Never an answer, and an answer that trickles: both end at timeout_s, whatever the read timeout says."""
    server = scripted(lambda request: replace(good(request), delay_s=60.0))
    started = time.monotonic()
    scores = ask(connect(server, timeout_s=0.5), micro_batches=3)
    assert 0.45 < time.monotonic() - started < 20
    assert scores.failures["r"] == Counter(timeout=12)
    assert scores.waited_s < 20


def test_retries_stay_inside_the_deadline(scripted: Any, connect: Any) -> None:
    server = scripted(lambda _: Reply({}, 503))
    started = time.monotonic()
    scores = ask(connect(server, timeout_s=1.0, max_attempts=100, breaker_failures=100))
    assert time.monotonic() - started < 15, "a hundred attempts would take minutes"
    assert scores.failures["r"].total() == 4
    assert set(scores.failures["r"]) <= {"unavailable", "timeout"}  # the deadline may fall into the last attempt
    assert 2 <= len(server.requests) <= 6


def test_connection_refused(connect: Any, scripted: Any) -> None:
    client = connect(scripted(), max_attempts=2)
    client._callers["svc"].pool.endpoints[0].url = f"http://127.0.0.1:{free_port()}"
    scores = ask(client)
    assert scores.failures["r"] == Counter(unreachable=4)


def test_an_open_breaker_sends_everything_to_the_other_url(scripted: Any, connect: Any) -> None:
    broken, working = scripted(lambda _: Reply({}, 503)), scripted()
    client = connect(broken, working, breaker_failures=2, breaker_reset_s=60.0)
    for i in range(6):
        batch = client.batch()
        batch.submit(make_samples(2, {"r": 1.0}, first=2 * i))
        assert batch.collect().valid_BR.all()
    assert len(broken.requests) == 2
    assert len(working.requests) == 6
    assert f"{broken.url} failed 2 times in a row" in client.said("breaker")[0]


def test_a_url_that_answers_nonsense_at_once_does_not_attract_all_requests(scripted: Any, connect: Any) -> None:
    broken, working = scripted(lambda _: Reply(b"nonsense")), scripted(lambda r: replace(good(r), delay_s=0.02))
    client = connect(broken, working, breaker_failures=3, breaker_reset_s=60.0)
    for _ in range(10):
        ask(client, micro_batches=1)
    assert len(broken.requests) == 3
    assert len(working.requests) == 7


def test_a_rested_url_is_tried_once_ready_answers(scripted: Any, connect: Any) -> None:
    server = scripted(lambda _: Reply({}, 503))
    client = connect(server, breaker_failures=1, breaker_reset_s=0.3, max_attempts=1)
    assert not ask(client).valid_BR.any()
    server.ready = Reply({}, 503)
    server.behave = good
    time.sleep(0.35)
    asked = len(server.requests)
    assert not ask(client).valid_BR.any()  # the trial asked /ready first, and spared the service the request
    assert len(server.requests) == asked
    server.ready = Reply({"status": "ready"})
    time.sleep(0.35)
    assert ask(client).valid_BR.all()
    assert f"{server.url} answers again" in client.said("breaker")[-1]


def test_waiting_for_an_open_breaker_counts_as_an_attempt(scripted: Any, connect: Any) -> None:
    server = scripted(lambda _: Reply({}, 503))
    client = connect(server, breaker_failures=1, breaker_reset_s=0.2, max_attempts=3, timeout_s=30.0)
    started = time.monotonic()
    assert ask(client).failures["r"] == Counter(unavailable=4)
    assert time.monotonic() - started < 20


def test_hedging_asks_another_url_past_the_usual_latency(scripted: Any, connect: Any) -> None:
    first, second = scripted(), scripted()
    client = connect(first, second, hedge=True, timeout_s=10.0)
    for _ in range(24):
        ask(client, count=1)
    first.behave = lambda request: replace(good(request), delay_s=60.0)
    asked = len(second.requests)
    assert ask(client).valid_BR.all(), "by the second: the first answers after the deadline of 10 s"
    assert len(second.requests) == asked + 1


def test_hedging_keeps_the_good_answer_when_the_other_fails(scripted: Any, connect: Any) -> None:
    first, second = scripted(), scripted()
    client = connect(first, second, hedge=True, timeout_s=10.0)
    for _ in range(24):
        ask(client, count=1)
    first.behave = lambda request: replace(good(request), delay_s=0.4)
    second.behave = lambda _: Reply({}, 500)
    assert ask(client).valid_BR.all()


def test_a_response_without_end_is_cut_off(scripted: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.rewards.transport.MAX_RESPONSE_BYTES", 10_000)
    scores = ask(connect(scripted(lambda _: Reply(b" " * 1_000_000))))
    assert scores.failures["r"] == Counter(invalid_response=4)
    assert "more than 10000 bytes" in scores.details[0]["r"]["error"]["message"]


def test_one_failed_request_in_twenty_costs_one_more_request_in_twenty(scripted: Any, connect: Any) -> None:
    """The other nineteen are untouched: no request waits for a neighbour's retry, and no score is lost."""
    seen = iter(range(1, 10_000))
    server = scripted(lambda request: Reply({}, 503) if next(seen) % 20 == 0 else good(request))
    client = connect(server)
    for i in range(10):
        batch = client.batch()
        for j in range(12):
            batch.submit(make_samples(2, {"r": 1.0}, first=24 * i + 2 * j))
        assert batch.collect().valid_BR.all()
    assert len(server.requests) == 126  # 120, and the six that were answered 503
    assert client.said("breaker") == []


def test_one_failed_item_in_twenty_costs_nothing(scripted: Any, connect: Any) -> None:
    def behave(request: dict[str, Any]) -> Reply:
        reply = good(request)
        for result in reply.body["results"]:
            if int(result["id"][1:]) % 20 == 0:
                result |= {"score": None, "error": {"code": "parse_error", "message": "no verdict"}}
        return reply

    server = scripted(behave)
    scores = ask(connect(server), count=20, micro_batches=10)
    assert len(server.requests) == 10
    assert scores.failures["r"] == Counter(parse_error=10)
    assert int(scores.valid_BR.sum()) == 190
    assert scores.stop_reason is None
