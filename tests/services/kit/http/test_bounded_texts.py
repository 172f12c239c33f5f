"""Every text has a bound: of requests, with both numbers in the refusal; of answers, by being cut or left out."""

from __future__ import annotations

import json
import time

import pytest

from services.kit.dispatch.isolation import score_isolated
from services.kit.errors import ApiError, ErrorResponse
from services.kit.scorer import Failure, Item, Score
from services.kit.testing.fakes import PromptLengthScorer
from services.rules.color import target_color
from wire.schema import (
    MAX_MESSAGE_LENGTH,
    MAX_TARGET_LENGTH,
    MAX_TARGETS,
    MAX_TEXT_LENGTH,
    ErrorBody,
    ErrorCode,
    ItemError,
    ScoreItem,
    ScoreResponse,
)


def sent(**fields):
    return {"id": "a", "prompt": "four", "completion": "c", **fields}


TOO_LONG = {
    "targets.0": ({"targets": ["x" * (MAX_TARGET_LENGTH + 1)]}, "at most 4096 characters; got 4097"),
    "targets": ({"targets": ["x"] * (MAX_TARGETS + 1)}, "at most 256 items"),
    "prompt": ({"prompt": "x" * 65_537}, "at most 65536 characters; got 65537"),
    "completion": ({"completion": "x" * (MAX_TEXT_LENGTH + 1)}, "at most 1048576 characters; got 1048577"),
    "id": ({"id": "x" * 257}, "at most 256 characters; got 257"),
    "group_id": ({"group_id": "x" * 257}, "at most 256 characters; got 257"),
    "metadata": ({"metadata": {"a": [{"b": "x" * (MAX_TEXT_LENGTH + 1)}]}}, "1048577 characters; the limit is 1048576"),
    "metadata name": ({"metadata": {"x" * (MAX_TEXT_LENGTH + 1): 1}}, "1048577 characters; the limit is 1048576"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", TOO_LONG)
async def test_a_text_above_its_bound_is_refused_with_both_numbers(running, name):
    fields, message = TOO_LONG[name]
    async with running(PromptLengthScorer()) as client:
        answer = await client.post("/v1/score", json={"items": [sent(**fields)]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid")
        assert message in answer.json()["error"]["message"]
        assert answer.json()["error"]["field"] == f"items.0.{name.partition(' ')[0]}"
        assert (await client.post("/v1/score", json={"items": [sent()]})).status_code == 200


def test_texts_at_their_bounds_are_taken():
    item = sent(
        id="x" * 256,
        prompt="x" * 65_536,
        completion="x" * MAX_TEXT_LENGTH,
        targets=["x" * MAX_TARGET_LENGTH] * MAX_TARGETS,
        metadata={"a": "x" * MAX_TEXT_LENGTH},
    )
    assert ScoreItem.model_validate(item).targets is not None


def test_a_message_is_cut_and_never_a_reason_to_lose_the_answer():
    """Also that of another server: a client reads one of half a megabyte as its beginning."""
    message = "<script>" + "A" * 500_000
    tree = {
        "results": [
            {"id": "a", "score": None, "error": {"code": "internal", "message": message}},
            {"id": "b", "score": 1.0},
        ],
        "scorer": {"name": "r", "revision": "1", "range": [0, 1]},
        "request_id": "q",
    }
    first, second = ScoreResponse.model_validate_json(json.dumps(tree)).results
    assert first.error is not None and second.score == 1.0
    assert len(first.error.message) == MAX_MESSAGE_LENGTH and first.error.message.endswith("A…")
    assert ItemError(code=ErrorCode.INTERNAL, message="short").message == "short"


def test_a_refusal_does_not_repeat_a_megabyte():
    error = ApiError(422, "no " * 1_000_000, field="items.0." + "x" * 1_000_000)
    body = ErrorBody.model_validate_json(bytes(ErrorResponse(error).body))
    assert len(body.error.message) == MAX_MESSAGE_LENGTH
    assert body.error.field is not None and len(body.error.field) == MAX_MESSAGE_LENGTH


class Says(PromptLengthScorer):
    """Answers what it was made with."""

    def __init__(self, result):
        super().__init__()
        self._result = result

    def score_item(self, item):
        return self._result


def said(result):
    [checked] = score_isolated(Says(result), "prompt_length", [Item(id="a", prompt="p")])
    return checked


def test_what_a_scorer_says_is_bounded():
    assert len(said(Failure(ErrorCode.INTERNAL, "x" * 1_000_000)).message) == 500
    many = said(Score(1.0, {f"c{n}": 1.0 for n in range(257)}))
    assert many.code is ErrorCode.INTERNAL and "257 components; the limit is 256" in many.message
    large = said(Score(1.0, {"c": 1.0}, {"words": "B" * 2_000_000}))
    assert (large.value, large.components) == (1.0, {"c": 1.0}), "details are shown, not trained on"
    assert large.details == {"left_out": "details of 2000013 characters of JSON; the limit is 1048576"}
    assert said(Score(1.0, details={"words": "B" * 1_000_000})).details["words"]


@pytest.mark.parametrize("mark", ['"', "“", "‘", "「", "『", "«", "'", " '", "'a ", "“‘"])
def test_a_prompt_of_quotation_marks_alone_is_read_in_no_time(mark):
    """A bound against a hang: a scan to the end for each opening mark takes half a minute here, and holds everyone."""
    prompt = (mark * 65_536)[:65_536]
    started = time.monotonic()
    assert isinstance(target_color(Item(id="a", prompt=prompt)), Failure)
    assert time.monotonic() - started < 5
