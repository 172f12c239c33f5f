"""Above its failure rate a reward pauses the run: the service is waited for, then asked once more, or the run stops."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.support.reward_servers import Reply, good, make_samples
from tests.support.waiting import wait_until
from trainer.rewards.answers import Answer
from trainer.rewards.failure_rate import FailureWindow
from trainer.types import Scores

DOWN = Reply({"error": {"code": "x", "message": "down"}}, 503)


class Flaky:
    """A service that is down (/ready too) until `up()`, with a scripted server in front."""

    def __init__(self, scripted: Any) -> None:
        self.server = scripted(lambda _: DOWN)
        self.canaries = 0

    def down(self) -> None:
        self.server.ready = DOWN
        self.server.behave = lambda _: DOWN

    def up(self, behave: Any = good) -> None:
        def answer(request: dict[str, Any]) -> Reply:
            if request["items"][0]["id"].startswith("canary"):
                self.canaries += 1
                return good(request, lambda item: float(item["id"] == "canary-right"))
            return behave(request)  # type: ignore[no-any-return]

        self.server.behave = answer
        self.server.ready = Reply({"status": "ready"})


@pytest.fixture
def flaky(scripted: Any) -> Flaky:
    service = Flaky(scripted)
    service.up()
    return service


def ask(client: Any, *, micro_batches: int = 3, size: int = 4, first: int = 0) -> Scores:
    batch = client.batch()
    for i in range(micro_batches):
        batch.submit(make_samples(size, {"r": 1.0}, first=first + size * i))
    return batch.collect()


def test_pause_waits_for_the_service_and_asks_once_more(flaky: Flaky, connect: Any) -> None:
    client = connect(
        flaky.server, columns={"r": {"canary": "differ", "max_failure_rate": 0.5, "patience_s": 20.0}}, max_attempts=1
    )
    flaky.down()
    timer = threading.Timer(0.8, flaky.up)
    timer.start()
    scores = ask(client)
    timer.join()
    assert scores.valid_BR.all()
    assert scores.scores_BR[:, 0].tolist() == [float(i) for i in range(12)]
    assert scores.stop_reason is None
    assert flaky.canaries == 2  # at the start, and before going on
    assert "100% of the last 12 scores failed (max_failure_rate 50%" in client.said("pause")[0]
    assert "scores again" in client.said("resume")[0]
    assert len(client.said("failure")) == 3  # those of before the pause were told
    assert 0.7 < scores.waited_s < 10


def test_an_early_update_sees_nothing_of_a_pause_and_all_of_it_afterwards(flaky: Flaky, connect: Any) -> None:
    client = connect(flaky.server, columns={"r": {"max_failure_rate": 0.5, "patience_s": 20.0}}, max_attempts=1)
    flaky.down()
    batch = client.batch()
    batch.submit(make_samples(4, {"r": 1.0}))
    with ThreadPoolExecutor(1) as pool:
        collecting = pool.submit(batch.collect)
        wait_until(lambda: client.said("pause"), "the run pauses")
        assert batch.peek(slice(0, 4)) is None and not collecting.done()
        flaky.up()
        scores, seen = collecting.result(), batch.peek(slice(0, 4))
    assert seen is not None and torch.equal(seen.scores_BR, scores.scores_BR) and seen.valid_BR.all()


def test_only_what_failed_is_asked_again(flaky: Flaky, connect: Any) -> None:
    client = connect(flaky.server, columns={"r": {"max_failure_rate": 0.5, "patience_s": 20.0}}, max_attempts=1)
    seen: Counter[str] = Counter()

    def mostly_down(request: dict[str, Any]) -> Reply:
        name = request["items"][0]["id"]
        seen[name] += 1
        return good(request) if name == "s0" or seen[name] > 1 else DOWN

    flaky.up(mostly_down)
    scores = ask(client)
    assert scores.valid_BR.all()
    assert seen == Counter(s0=1, s4=2, s8=2)


def test_an_evaluation_waits_out_an_outage_that_training_would_bear(flaky: Flaky, connect: Any) -> None:
    client = connect(flaky.server, columns={"r": {"max_failure_rate": 1.0, "patience_s": 20.0}}, max_attempts=1)
    flaky.down()
    assert not ask(client).valid_BR.any() and not client.said("pause"), "training goes on without these scores"
    timer = threading.Timer(0.8, flaky.up)
    timer.start()
    batch = client.batch(["r"])
    batch.submit(make_samples(4, {}))
    scores = batch.collect()
    timer.join()
    assert scores.valid_BR.all() and scores.stop_reason is None
    assert len(client.said("resume")) == 1


def test_an_evaluation_without_its_service_is_no_reason_to_stop_where_failures_are_borne(
    flaky: Flaky, connect: Any
) -> None:
    client = connect(flaky.server, columns={"r": {"max_failure_rate": 1.0, "patience_s": 0.5}}, max_attempts=1)
    flaky.down()
    batch = client.batch(["r"])
    batch.submit(make_samples(4, {}))
    scores = batch.collect()
    assert not scores.valid_BR.any() and scores.stop_reason is None
    assert scores.failures["r"] == Counter(unavailable=4)


@pytest.mark.parametrize("max_failure_rate", [0.5, 1.0])
def test_an_outage_costs_an_evaluation_its_patience_once_not_each_batch(
    flaky: Flaky, connect: Any, max_failure_rate: float
) -> None:
    """Other ranks wait for this one's last batch, no longer than `distributed.timeout_s` allows for one."""
    column = {"max_failure_rate": max_failure_rate, "patience_s": 2.0, "canary": "none"}
    client = connect(flaky.server, columns={"r": column}, max_attempts=1)

    def evaluate(first: int) -> float:
        batch = client.batch(["r"])
        batch.submit(make_samples(4, {}, first=first))
        started = time.monotonic()
        batch.collect()
        return time.monotonic() - started

    flaky.down()
    waits = [evaluate(4 * n) for n in range(5)]
    assert waits[0] > 1.5 and sum(waits[1:]) < 4, "each with its patience would be 8 s"
    flaky.up()
    evaluate(20)
    flaky.down()
    assert evaluate(24) > 1.5, "another outage has patience of its own"


def test_a_slow_service_that_is_back_is_recognised_after_its_patience_is_spent(flaky: Flaky, connect: Any) -> None:
    """Its canary takes longer than the second that is left to one at the end of a wait."""
    client = connect(flaky.server, columns={"r": {"max_failure_rate": 0.5, "patience_s": 3.0}}, max_attempts=1)
    flaky.down()

    def evaluate(first: int) -> Scores:
        batch = client.batch(["r"])
        batch.submit(make_samples(4, {}, first=first))
        return batch.collect()

    assert evaluate(0).stop_reason is not None

    seen = 0

    def fails_once_more(request: dict[str, Any]) -> Reply:
        nonlocal seen
        seen += 1
        return DOWN if seen == 1 else good(request)

    flaky.up(fails_once_more)
    well = flaky.server.behave

    def slow_canary(request: dict[str, Any]) -> Reply:
        reply = well(request)
        reply.delay_s = 1.5 if request["items"][0]["id"].startswith("canary") else 0.0
        return reply

    flaky.server.behave = slow_canary
    scores = evaluate(4)
    assert scores.valid_BR.all() and scores.stop_reason is None


def test_patience_runs_out_and_the_reason_says_what_to_do(flaky: Flaky, connect: Any) -> None:
    client = connect(flaky.server, columns={"r": {"max_failure_rate": 0.5, "patience_s": 0.5}}, max_attempts=1)
    flaky.down()
    started = time.monotonic()
    scores = ask(client)
    assert time.monotonic() - started < 20
    reason = scores.stop_reason
    assert reason is not None
    for piece in (
        "reward r",
        "100% of the last 12 scores failed",
        flaky.server.url,
        "did not come back within patience_s = 0.5 s",
        "/ready answered 503: down",
        "Look at the log of service svc",
        "rewards.columns.r.patience_s",
    ):
        assert piece in reason
    assert not scores.valid_BR.any()
    assert scores.failures["r"] == Counter(unavailable=12)
    assert client.said("stop") == [reason]


def test_ready_alone_is_not_enough_to_go_on(flaky: Flaky, connect: Any) -> None:
    """The service says it is ready, yet the canary fails: that is no recovery."""
    column = {"canary": "differ", "max_failure_rate": 0.5, "patience_s": 0.5}
    client = connect(flaky.server, columns={"r": column}, max_attempts=1)
    flaky.server.behave = lambda _: DOWN
    scores = ask(client)
    assert scores.stop_reason is not None
    assert "the canary failed: unavailable" in scores.stop_reason


def test_failures_that_come_again_stop_the_run(flaky: Flaky, connect: Any) -> None:
    column = {"canary": "differ", "max_failure_rate": 0.5, "patience_s": 20.0}
    client = connect(flaky.server, columns={"r": column})
    flaky.up(lambda _: Reply({"error": {"code": "x", "message": "a bug"}}, 500))
    started = time.monotonic()
    scores = ask(client)
    assert time.monotonic() - started < 15, "not its patience of 20 s"
    assert scores.stop_reason is not None
    assert (
        "the service is ready and the canary scores, yet 100% of this step's 12 scores failed again"
        in scores.stop_reason
    )
    assert "a bug" in scores.stop_reason


def test_below_the_rate_nothing_pauses(flaky: Flaky, connect: Any) -> None:
    client = connect(flaky.server, columns={"r": {"max_failure_rate": 0.5}}, max_attempts=1)
    flaky.up(lambda request: DOWN if request["items"][0]["id"] == "s0" else good(request))
    scores = ask(client)
    assert client.said("pause") == []
    assert scores.failures["r"] == Counter(unavailable=4)
    assert int(scores.valid_BR.sum()) == 8


def test_an_outage_that_is_over_does_not_count_against_later_scores(flaky: Flaky, connect: Any) -> None:
    client = connect(flaky.server, columns={"r": {"max_failure_rate": 0.2, "patience_s": 20.0}}, max_attempts=1)
    flaky.down()
    threading.Timer(0.5, flaky.up).start()
    assert ask(client).stop_reason is None
    assert ask(client, first=100).stop_reason is None
    assert len(client.said("pause")) == 1


def test_interrupt_ends_a_pause(flaky: Flaky, connect: Any) -> None:
    client = connect(flaky.server, columns={"r": {"max_failure_rate": 0.5, "patience_s": 600.0}}, max_attempts=1)
    flaky.down()
    threading.Timer(0.5, client.interrupt).start()
    started = time.monotonic()
    scores = ask(client)
    assert time.monotonic() - started < 60
    assert scores.stop_reason is not None
    assert "the wait was interrupted" in scores.stop_reason


def test_one_reward_pauses_while_the_other_is_complete(flaky: Flaky, connect: Any) -> None:
    columns = {"r": {"max_failure_rate": 0.5, "patience_s": 0.3}, "t": {}}

    def first_column_down(request: dict[str, Any]) -> Reply:
        return DOWN if request.get("reward") == "scripted" else good(request)

    columns["r"]["reward"] = "scripted"
    client = connect(flaky.server, columns=columns, max_attempts=1, breaker_failures=100)
    flaky.up(first_column_down)
    batch = client.batch()
    batch.submit(make_samples(4, {"r": 1.0, "t": 1.0}))
    scores = batch.collect()
    assert scores.valid_BR.tolist() == [[False, True]] * 4
    assert scores.stop_reason is not None
    assert "reward r" in scores.stop_reason


def test_the_window_keeps_the_last_scores_and_ignores_what_does_not_apply() -> None:
    window = FailureWindow(4)
    good_answer, bad, other = Answer(1.0), Answer(None, "timeout"), Answer(None, "not_applicable")
    assert window.rate == 0
    window.add([bad, other, other, good_answer])
    assert (window.rate, len(window)) == (0.5, 2)
    window.add([good_answer, good_answer, good_answer])
    assert (window.rate, len(window)) == (0.0, 4)
    window.clear()
    assert len(window) == 0
