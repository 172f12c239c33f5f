"""What a service answers is believed only when it keeps the contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from trainer.rewards.checks import InvalidResponseError, check_response

IDS = ["a", "b", "c"]
SCORER = {"name": "n", "revision": "1", "range": [0, 1]}


def response() -> dict[str, Any]:
    results = [{"id": name, "score": i / 2} for i, name in enumerate(IDS)]
    return {"results": results, "scorer": dict(SCORER), "request_id": "r", "schema_version": "1"}


def check(tree: object) -> dict[str, Any]:
    return check_response(json.dumps(tree).encode(), IDS)[0]


def test_order_of_results_does_not_matter() -> None:
    tree = response()
    tree["results"].reverse()
    answers = check(tree)
    assert list(answers) == IDS
    assert [answers[name].score for name in IDS] == [0.0, 0.5, 1.0]


def test_details_components_and_cached_come_along() -> None:
    tree = response()
    tree["results"][0] |= {"components": {"x": 0.25}, "details": {"texts": ["hi"]}, "cached": True}
    answer = check(tree)["a"]
    assert (answer.components, answer.details, answer.cached) == ({"x": 0.25}, {"texts": ["hi"]}, True)


def test_an_error_is_a_failure_with_the_services_code() -> None:
    tree = response()
    tree["results"][1] = {"id": "b", "score": None, "error": {"code": "parse_error", "message": "no verdict"}}
    answer = check(tree)["b"]
    assert (answer.score, answer.code, answer.message, answer.failed) == (None, "parse_error", "no verdict", True)


def test_not_applicable_is_no_failure() -> None:
    tree = response()
    tree["results"][1] = {"id": "b", "score": None, "error": {"code": "not_applicable", "message": "no target"}}
    answer = check(tree)["b"]
    assert answer.not_applicable
    assert not answer.failed


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf"), 1e39, 10**400, "0.5", True, [0.5], {}])
def test_a_score_that_is_no_finite_number_fails_its_item_alone(score: object) -> None:
    tree = response()
    tree["results"][1]["score"] = score
    body = json.dumps(tree).encode()
    answers, _ = check_response(body, IDS)
    assert answers["b"].score is None
    assert answers["b"].code == "invalid_response"
    assert (answers["a"].score, answers["c"].score) == (0.0, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"score": None},
        {"error": {"code": "internal", "message": "and a score"}},
        {"score": None, "error": {"code": "made_up", "message": ""}},
        {"score": None, "error": "text"},
        {"components": {"x": float("nan")}},
        {"components": {"x": "high"}},
        {"surprise": 1},
    ],
)
def test_a_broken_item_fails_alone(change: dict[str, Any]) -> None:
    tree = response()
    tree["results"][2] |= change
    answers = check(tree)
    assert (answers["c"].score, answers["c"].code) == (None, "invalid_response")
    assert (answers["a"].score, answers["b"].score) == (0.0, 0.5)


def test_missing_items_fail_and_the_others_count() -> None:
    tree = response()
    del tree["results"][0]
    answers = check(tree)
    assert answers["a"].code == "invalid_response"
    assert "2 results for 3 items" in answers["a"].message
    assert answers["b"].score == 0.5


def _duplicate(tree: dict[str, Any]) -> None:
    tree["results"].append(dict(tree["results"][0]))


def _foreign(tree: dict[str, Any]) -> None:
    tree["results"][0]["id"] = "z"


def _number_id(tree: dict[str, Any]) -> None:
    tree["results"][0]["id"] = 7


def _version(tree: dict[str, Any]) -> None:
    tree["schema_version"] = "2"


def _no_scorer(tree: dict[str, Any]) -> None:
    del tree["scorer"]


def _scores_only(tree: dict[str, Any]) -> None:
    tree["results"] = [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_duplicate, "id 'a' comes 2 times"),
        (_foreign, "id 'z' was not in the request"),
        (_number_id, "have no id"),
        (_version, "schema_version '2'"),
        (_no_scorer, "scorer"),
        (_scores_only, "no list of objects"),
    ],
)
def test_a_mixed_up_response_is_not_believed_at_all(spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    tree = response()
    spoil(tree)
    with pytest.raises(InvalidResponseError, match=message):
        check(tree)


@pytest.mark.parametrize("body", [b"", b"\x00\xff<html>", b"[1, 2]", b"null", b'{"results": [', b'{"results": null}'])
def test_garbage(body: bytes) -> None:
    with pytest.raises(InvalidResponseError):
        check_response(body, IDS)


def test_every_prefix_of_a_response_is_refused_or_fails_items() -> None:
    body = json.dumps(response()).encode()
    for end in range(len(body)):
        with pytest.raises(InvalidResponseError):
            check_response(body[:end], IDS)
