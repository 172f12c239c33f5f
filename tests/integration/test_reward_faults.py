"""A real server that breaks the contract, in a real process: masks or a stop with a reason, inside the deadline."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.reward_servers import Misbehaving, make_samples, misbehaving
from trainer.config import RewardsConfig
from trainer.rewards import RewardClient
from trainer.types import Scores

DEADLINE_S = 2.0
PER_BATCH = 4


@pytest.fixture(scope="module")
def server() -> Iterator[Misbehaving]:
    with misbehaving(retry_after_s=0) as running:
        yield running


def client_of(server: Misbehaving, **column: Any) -> RewardClient:
    tree = {
        "services": {
            "svc": {
                "urls": [server.url],
                "timeout_s": DEADLINE_S,
                "connect_timeout_s": 0.5,
                "breaker_reset_s": 0.3,
                "max_attempts": 3,
            }
        },
        # The server scores by the prompt's length, so the probes cannot differ.
        "columns": {"r": {"service": "svc", "canary": "score", "max_failure_rate": 1.0, **column}},
        "ready_timeout_s": 20.0,
    }
    return RewardClient(RewardsConfig.model_validate(tree), urls={"svc": [server.url]})


def ask(client: RewardClient, micro_batches: int = 3) -> Scores:
    batch = client.batch()
    for i in range(micro_batches):
        batch.submit(make_samples(PER_BATCH, {"r": 1.0}, first=PER_BATCH * i))
    return batch.collect()


def check_scores_are_true_or_masked(scores: Scores) -> None:
    """The one promise: a number in the matrix is what the server scored, everything else is masked and counted."""
    for b, name in enumerate(scores.ids):
        if scores.valid_BR[b, 0]:
            assert scores.scores_BR[b, 0] == len(f"prompt {name[1:]}")
        else:
            assert scores.scores_BR[b, 0] == 0
    assert int((~scores.valid_BR).sum()) == scores.failures["r"].total()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("nan", {"invalid_response": 3}),
        ("infinity", {"invalid_response": 3}),
        ("null_without_error", {"invalid_response": 3}),
        ("out_of_range", {"out_of_range": 3}),
        ("all_out_of_range", {"out_of_range": 12}),
        ("short_list", {"invalid_response": 3}),
        ("long_list", {"invalid_response": 12}),
        ("wrong_ids", {"invalid_response": 12}),
        ("duplicate_ids", {"invalid_response": 12}),
        ("garbage", {"invalid_response": 12}),
        ("wrong_type", {"invalid_response": 12}),
        ("status_500", {"server_error": 12}),
        ("status_503", {"unavailable": 12}),
        ("overloaded", {"overloaded": 12}),
        ("disconnect", {"unreachable": 12}),
        ("never", {"timeout": 12}),
    ],
)
def test_a_fault_ends_in_masks_inside_the_deadline(server: Misbehaving, fault: str, expected: dict[str, int]) -> None:
    server.choose("none")
    with client_of(server) as client:
        server.choose(fault)
        started = time.monotonic()
        scores = ask(client)
        assert time.monotonic() - started < DEADLINE_S + 10.0
        check_scores_are_true_or_masked(scores)
        assert scores.failures["r"].total() == sum(expected.values())
        # A breaker that opened on the way may answer for the server.
        assert set(scores.failures["r"]) <= set(expected) | {"unreachable"}
        assert scores.stop_reason is None
        server.choose("none")
        time.sleep(0.35)  # let the breaker rest
        assert ask(client).valid_BR.all()  # and the run goes on


@pytest.mark.parametrize("fault", ["other_name", "other_revision", "other_range", "other_direction"])
def test_a_scorer_that_changes_under_the_run_stops_it(server: Misbehaving, fault: str) -> None:
    server.choose("none")
    with client_of(server) as client:
        assert ask(client).valid_BR.all()
        server.choose(fault)
        scores = ask(client)
        assert not scores.valid_BR.any() and scores.failures["r"] == Counter(changed_scorer=12)
        assert scores.stop_reason is not None and "comes from another scorer" in scores.stop_reason.replace(
            "come ", "comes "
        )
        server.choose("none")


@pytest.mark.parametrize("fault", ["short_list", "status_500", "status_503", "overloaded", "disconnect"])
def test_every_third_request_fails(server: Misbehaving, fault: str) -> None:
    server.choose("none")
    with client_of(server) as client:
        server.choose(fault, every=3)
        scores = ask(client, micro_batches=6)
        check_scores_are_true_or_masked(scores)
        retried = fault in ("status_503", "overloaded", "disconnect")
        assert scores.valid_BR.all() == retried
        server.choose("none")


@pytest.mark.parametrize("fault", ["never", "status_503", "garbage"])
def test_a_fault_that_stays_stops_the_run_with_a_reason(server: Misbehaving, fault: str) -> None:
    server.choose("none")
    with client_of(server, max_failure_rate=0.5, patience_s=1.0) as client:
        server.choose(fault)
        started = time.monotonic()
        scores = ask(client)
        assert time.monotonic() - started < 2 * DEADLINE_S + 1.0 + 20.0
        assert scores.stop_reason is not None
        assert server.url in scores.stop_reason
        check_scores_are_true_or_masked(scores)
        server.choose("none")


def test_killed_and_started_again_while_requests_are_under_way() -> None:
    with misbehaving(latency_ms=50) as server, client_of(server, max_failure_rate=0.5, patience_s=30.0) as client:
        assert ask(client).valid_BR.all()
        server.choose("die")
        revival = threading.Timer(0.3, server.start)
        batch = client.batch()
        batch.submit(make_samples(PER_BATCH, {"r": 1.0}))
        revival.start()
        for i in range(1, 4):
            time.sleep(0.1)
            batch.submit(make_samples(PER_BATCH, {"r": 1.0}, first=PER_BATCH * i))
        scores = batch.collect()
        revival.join()
        assert scores.stop_reason is None
        check_scores_are_true_or_masked(scores)
        assert ask(client).valid_BR.all()
        assert ask(client).failures == {"r": Counter()}
