"""A service's answer is believed only after this: schema, ids, count, finiteness, range, score xor error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError
from pydantic_core import from_json

from trainer.rewards.answers import Answer, ClientCode, readable
from wire.schema import SCHEMA_VERSION, ItemResult, ScorerInfo

_MOST = float(np.finfo(np.float32).max)  # a finite double above it would be infinite in the score matrix
_ROUNDING = 1e-6  # of the larger end: a cosine of 1 computed in float32 may be a little above 1


class InvalidResponseError(ValueError):
    """The whole response breaks the contract, so none of it is believed."""


def check_response(body: bytes, ids: Sequence[str]) -> tuple[dict[str, Answer], ScorerInfo]:
    """One answer per id of the request, whatever the order in the body.

    An item that breaks the contract (NaN, score and error at once, missing) fails alone, and so does one whose score is
    outside the range that the body's scorer declares. Ids that were not sent or that come twice mean the service mixes
    things up: nothing in the body is believed.

    Raises:
        InvalidResponseError: not JSON, not wire v1, or the ids are not those that were sent.
    """
    results, scorer = _envelope(body)
    counts = Counter(result.get("id") for result in results if isinstance(result.get("id"), str))
    if len(results) != counts.total():
        raise InvalidResponseError(f"{len(results) - counts.total()} of {len(results)} results have no id")
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InvalidResponseError(f"id {twice[0]!r} comes {counts[twice[0]]} times")
    sent = set(ids)
    unknown = [name for name in counts if name not in sent]
    if unknown:
        raise InvalidResponseError(f"id {unknown[0]!r} was not in the request ({len(unknown)} such ids)")
    answers = {str(result["id"]): _answer(result, scorer) for result in results}
    missing = Answer(
        None,
        ClientCode.INVALID_RESPONSE,
        f"the response has {len(results)} results for {len(ids)} items; this one is missing",
    )
    return {name: answers.get(name, missing) for name in ids}, scorer


def _envelope(body: bytes) -> tuple[list[dict[str, Any]], ScorerInfo]:
    try:
        raw = from_json(body)
    except ValueError as error:
        start = body[:60].decode("utf-8", "replace")
        raise InvalidResponseError(f"not JSON ({error}); it starts with {start!r}") from error
    if not isinstance(raw, dict):
        raise InvalidResponseError(f"a JSON {type(raw).__name__} instead of an object")
    results = raw.get("results")
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise InvalidResponseError("no list of objects in `results`")
    version = raw.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise InvalidResponseError(f"schema_version {version!r}; this client speaks {SCHEMA_VERSION!r}")
    try:
        return results, ScorerInfo.model_validate(raw.get("scorer"))
    except ValidationError as error:
        raise InvalidResponseError(f"`scorer`: {_first(error)}") from error


def outside_range(score: float, scorer: ScorerInfo) -> str | None:
    """A sentence when a score is no number that the scorer can give; None when it is one.

    Beyond an end by less than float32 rounds off is not outside.
    """
    if not math.isfinite(score):
        return f"scores {score}, which is not a finite number"
    low, high = scorer.range
    slack = _ROUNDING * max(1.0, abs(low or 0.0), abs(high or 0.0))
    if (low is None or score >= low - slack) and (high is None or score <= high + slack):
        return None
    return f"scores {score}, outside the range [{low}, {high}] that {scorer.name} declares"


def _answer(raw: dict[str, Any], scorer: ScorerInfo) -> Answer:
    if (problem := _no_number(raw.get("score"))) is not None:
        return _broken(problem)
    try:
        result = ItemResult.model_validate(raw)
    except ValidationError as error:
        return _broken(_first(error))
    for name, value in result.components.items():
        if not math.isfinite(value):
            return _broken(f"component {name!r} is {value}, not a finite number")
    if result.error is not None:
        return Answer(None, result.error.code.value, readable(result.error.message), details=result.details)
    assert result.score is not None, "a result has a score or an error"
    if (problem := outside_range(result.score, scorer)) is not None:
        return Answer(None, ClientCode.OUT_OF_RANGE, problem, details=result.details)
    return Answer(result.score, components=result.components, details=result.details, cached=result.cached)


def _no_number(score: Any) -> str | None:
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float):
        return f"score is {readable(repr(score))}, not a number"
    if not abs(score) <= _MOST:
        return f"score is {score if isinstance(score, float) else 'an endless integer'}, not a finite float32"
    return None


def _broken(message: str) -> Answer:
    return Answer(None, ClientCode.INVALID_RESPONSE, message)


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
