"""Contract v1 as pydantic models: what they take, refuse, and write."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from pydantic import ValidationError

from wire.schema import ErrorCode, ItemError, ItemResult, ScoreItem, ScoreRequest, ScoreResponse, ScorerInfo

INFO = ScorerInfo(name="ocr", revision="1", range=(0.0, 1.0))


def test_response_round_trip():
    results = [
        ItemResult(id="a", score=0.5, components={"x": 0.1}, details={"text": ["é", {"box": [1, 2]}]}, cached=True),
        ItemResult(id="b", score=None, error=ItemError(code=ErrorCode.BAD_INPUT, message="no")),
    ]
    response = ScoreResponse(results=results, scorer=INFO, request_id="r")
    text = response.model_dump_json()
    assert ScoreResponse.model_validate_json(text) == response
    assert json.loads(text)["results"][1]["error"] == {"code": "bad_input", "message": "no"}
    assert json.loads(text)["schema_version"] == "1"


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_score_is_finite(score):
    with pytest.raises(ValidationError, match="is not finite"):
        ItemResult(id="a", score=score)


@pytest.mark.parametrize(
    "text", ['{"id": "a", "score": NaN}', '{"id": "a", "score": Infinity}', '{"id": "a", "score": 1e999}']
)
def test_score_in_json_is_finite(text):
    with pytest.raises(ValidationError):
        ItemResult.model_validate_json(text)


@pytest.mark.parametrize("part", [math.nan, math.inf])
def test_components_are_finite(part):
    with pytest.raises(ValidationError, match="component 'x'"):
        ItemResult(id="a", score=1.0, components={"x": part})


def test_result_is_a_score_or_an_error():
    error = ItemError(code=ErrorCode.TIMEOUT, message="late")
    for bad in ({"score": None}, {"score": 1.0, "error": error}):
        with pytest.raises(ValidationError, match="exactly one of `score` and `error`"):
            ItemResult(id="a", **bad)


def test_unknown_error_code_is_refused():
    with pytest.raises(ValidationError):
        ItemError(code="oops", message="")


def test_ids_are_unique():
    item = ScoreItem(id="a", prompt="p", completion="c")
    with pytest.raises(ValidationError, match="'a' appears twice"):
        ScoreRequest(items=[item, item])


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, {"x": -math.inf}]])
def test_metadata_is_finite(value):
    with pytest.raises(ValidationError, match="numbers must be finite"):
        ScoreItem(id="a", prompt="p", completion="c", metadata={"k": value})


def test_models_are_frozen():
    item = ScoreItem(id="a", prompt="p", completion="c")
    with pytest.raises(ValidationError, match="frozen"):
        item.prompt = "q"


def test_contract_needs_only_pydantic_and_pillow():
    code = (
        "import sys, wire.schema, wire.images\n"
        "print([m for m in ('torch', 'numpy', 'fastapi', 'httpx', 'starlette', 'services') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
