"""A reward of answers that are to be JSON: valid or not, and which of the asked keys they have."""

from __future__ import annotations

import pytest

from services.kit.scorer import Failure, Item, Score
from services.rules.objects import json_valid
from wire.schema import ErrorCode


def item(completion: str | None, keys: object = None) -> Item:
    return Item("a", "?", completion=completion, metadata={} if keys is None else {"json_keys": keys})  # type: ignore[dict-item]


VALID = [
    '{"a": 1}',
    " [1, 2]\n",
    "null",
    '"a"',
    "-1.5e3",
    '```json\n{"a": 1}\n```',
    "```\n[]\n```",
    '{"a": "\\ud83d\\ude00"}',
]
VALID += ['<think>{"a"</think><answer>{"a": 1}</answer>', '<answer>{"a": 1}', '{"text": "```"}', "[" * 150 + "]" * 150]
INVALID = ["", "a", "{'a': 1}", '{"a": 1,}', "NaN", "[Infinity]", '{"a": NaN}', "1 2", '{"a": 1} so', "[" * 500_000]
INVALID += [
    "[" * 300 + "]" * 300,
    "\N{ARABIC-INDIC DIGIT FOUR}",
    "<answer>1</answer><answer>2</answer>",
    "<think>1",
    "```",
]
INVALID += [
    '```python\n{"a": 1}\n```',
    "```{}```",
    '"\\ud800"',
    '"\n"',
    "```\n" + "\n" * 1_000_000 + "x```",
    "1" * 1_000_000,
]


@pytest.mark.parametrize("completion", VALID)
def test_one_json_value_is_a_one(completion: str) -> None:
    assert json_valid(item(completion)) == Score(1.0, {"valid": 1.0})


@pytest.mark.parametrize("completion", INVALID, ids=lambda text: text[:20])
def test_anything_else_is_a_zero(completion: str) -> None:
    result = json_valid(item(completion))
    assert isinstance(result, Score)
    assert (result.value, result.components) == (0.0, {"valid": 0.0}) and result.details["reason"]


@pytest.mark.parametrize(
    ("completion", "keys", "score", "missing"),
    [
        ('{"a": 1, "b": 2}', ["a", "b"], 1.0, None),
        ('{"a": 1, "c": 2}', ["a", "b"], 0.5, ["b"]),
        ('{"a": null}', ["a"], 1.0, None),
        ("[1]", ["a", "b"], 0.0, ["a", "b"]),
        ('{"a": 1, "b": "x"}', {"a": "integer", "b": "string"}, 1.0, None),
        ('{"a": 1.5, "b": "x"}', {"a": "integer", "b": "string"}, 0.5, ["a"]),
        ('{"a": true}', {"a": "number"}, 0.0, ["a"]),
        ('{"a": true, "b": [], "c": {}, "d": null}', dict(a="boolean", b="array", c="object", d="null"), 1.0, None),
        ('{"a": 1}', [], 1.0, None),
    ],
)
def test_with_keys_the_score_is_the_share_that_is_there(completion, keys, score, missing) -> None:
    result = json_valid(item(completion, keys))
    assert isinstance(result, Score)
    assert result.value == score and result.components == {"valid": 1.0} | ({"keys": score} if keys else {})
    assert result.details.get("missing") == missing


def test_no_json_has_no_keys() -> None:
    result = json_valid(item("{", ["a"]))
    assert isinstance(result, Score) and result.value == 0.0 and result.components == {"valid": 0.0, "keys": 0.0}


@pytest.mark.parametrize("keys", ["a", 1, [1], {"a": "text"}, {"a": 1}])
def test_keys_that_cannot_be_asked_for_are_named(keys: object) -> None:
    result = json_valid(item("{}", keys))
    assert isinstance(result, Failure) and result.code is ErrorCode.BAD_INPUT
    assert f"`metadata.json_keys` is {keys!r}" in result.message and "integer, boolean" in result.message


def test_without_a_completion_there_is_no_score() -> None:
    result = json_valid(item(None))
    assert isinstance(result, Failure) and result.code is ErrorCode.BAD_INPUT
