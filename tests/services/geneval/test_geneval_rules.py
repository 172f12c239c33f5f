"""GenEval's rules on boxes made by hand, for each of its tasks, and on the published evaluators' own verdicts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from services.geneval.rules import relations, verdict
from services.geneval.specification import Specification

CASES: list[dict[str, Any]] = json.loads(
    gzip.decompress(Path(__file__).with_name("published_verdicts.json.gz").read_bytes())
)


def box(x: float, y: float = 100, confidence: float = 0.9, side: float = 40) -> list[float]:
    return [x, y, x + side, y + side, confidence]


def wanted(tag: str, *include: dict[str, Any], exclude: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), "exclude": exclude or []}


def clause(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


@pytest.mark.parametrize("tag", ["single_object", "two_object", "counting", "colors", "position", "color_attr"])
def test_verdicts_equal_the_published_evaluators(tag: str) -> None:
    """`correct` of GenEval's evaluation, `strict` and `soft` of flow_grpo's reward server, on random detections."""
    cases = [case for case in CASES if case["metadata"]["tag"] == tag]
    assert len(cases) >= 80
    for case in cases:
        found = verdict(case["detections"], case["colors"], case["metadata"])
        assert (found.correct, found.strict) == (case["correct"], case["strict"]), case
        assert found.soft == pytest.approx(case["soft"], abs=1e-12), case
    assert len({case["correct"] for case in cases}) == len({case["strict"] for case in cases}) == 2


def test_single_object_must_be_seen_with_more_than_the_threshold() -> None:
    asked = wanted("single_object", clause("dog"))
    assert verdict({"dog": [box(0)]}, {}, asked).correct
    assert verdict({"dog": [box(0, confidence=0.31)]}, {}, asked).correct
    at = verdict({"dog": [box(0, confidence=0.3)]}, {}, asked)
    assert not at.correct and at.clauses[0].reason == "expected 1 dog, found 0"
    assert not verdict({}, {}, asked).correct


def test_two_objects_must_both_be_seen() -> None:
    asked = wanted("two_object", clause("dog"), clause("cup"))
    both = verdict({"dog": [box(0)], "cup": [box(100)]}, {}, asked)
    assert both.correct and both.strict and both.soft == both.soft_plain == 1
    one = verdict({"dog": [box(0)], "cup": []}, {}, asked)
    assert not one.correct and one.soft == one.soft_plain == 0.5
    assert [report.passed for report in one.clauses] == [True, False]


def test_counting_asks_for_more_confidence_and_for_no_more_than_the_number() -> None:
    asked = wanted("counting", clause("dog", 2), exclude=[clause("dog", 3)])
    sure, unsure = [box(0, confidence=0.95), box(100, confidence=0.91)], box(200, confidence=0.5)
    assert verdict({"dog": [*sure, unsure]}, {}, asked).correct
    three = verdict({"dog": [*sure, box(200, confidence=0.99)]}, {}, asked)
    assert not three.correct and three.exclusions[0].reason == "expected fewer than 3 dog, found 3"
    assert not three.strict and three.soft == three.soft_plain == 0.5


def test_a_count_far_above_is_below_zero_only_with_the_published_quirk() -> None:
    many = {"dog": [box(50 * n, confidence=0.95) for n in range(5)]}
    found = verdict(many, {}, wanted("counting", clause("dog", 1)))
    assert found.soft == 1 - 4 / 1 and found.soft_plain == 0 and found.correct and not found.strict


def test_at_most_sixteen_of_a_class_count_the_most_confident_ones() -> None:
    many = {"dog": [box(20 * n, confidence=0.3 + 0.02 * (n + 1)) for n in range(20)]}
    found = verdict(many, {}, wanted("two_object", clause("dog", 16)))
    assert found.strict and found.kept["dog"] == tuple(range(19, 3, -1))


def test_colors_are_those_of_the_counted_boxes() -> None:
    asked = wanted("colors", clause("dog", 1, color="red"))
    right = verdict({"dog": [box(0, confidence=0.4), box(99, confidence=0.8)]}, {"dog": ["blue", "red"]}, asked)
    assert right.correct and not right.strict
    wrong = verdict({"dog": [box(0)]}, {"dog": ["blue"]}, asked)
    assert not wrong.correct and wrong.clauses[0].reason == "expected 1 red dog, found 1 blue"
    assert wrong.soft == 0.5  # the count is right, the colour is not


@pytest.mark.parametrize(
    ("relation", "x", "y", "holds"),
    [
        ("left of", 0, 100, True),
        ("right of", 0, 100, False),
        ("right of", 400, 100, True),
        ("above", 200, 0, True),
        ("below", 200, 300, True),
        ("above", 200, 300, False),
        ("left of", 199, 100, False),  # nearly on each other: no relation
    ],
)
def test_position_is_seen_from_the_target(relation: str, x: float, y: float, holds: bool) -> None:
    asked = wanted("position", clause("cup"), clause("dog", 1, position=[relation, 0]))
    found = verdict({"cup": [box(200)], "dog": [box(x, y)]}, {}, asked)
    assert found.correct is holds
    assert found.soft == pytest.approx(1.0 if holds else 3 / 4)  # 1 and 1 for the counts; a failed place adds 0 and 1
    assert found.soft_plain == pytest.approx(1.0 if holds else 2 / 3)


def test_a_position_without_its_target_fails_and_says_so() -> None:
    asked = wanted("position", clause("cup"), clause("dog", 1, position=["left of", 0]))
    found = verdict({"dog": [box(0)]}, {}, asked)
    assert not found.correct and found.clauses[1].reason == "no target for dog to be left of"


def test_two_colored_objects() -> None:
    asked = wanted("color_attr", clause("dog", 1, color="red"), clause("cup", 1, color="blue"))
    boxes = {"dog": [box(0)], "cup": [box(100)]}
    assert verdict(boxes, {"dog": ["red"], "cup": ["blue"]}, asked).strict
    swapped = verdict(boxes, {"dog": ["blue"], "cup": ["red"]}, asked)
    assert not swapped.correct and swapped.soft == 0.5


def test_diagonal_boxes_have_two_relations() -> None:
    assert relations(box(0, 0), box(200, 200)) == {"left of", "above"}
    assert relations(box(0), box(0)) == set()


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"include": [clause("dog")]}, "metadata.tag is None"),
        ({"tag": "colors", "include": "dog"}, "metadata.include must be a list"),
        ({"tag": "colors"}, "has no include and no exclude"),
        (wanted("colors", {"count": 1}), r"metadata.include\[0\].class must be a name"),
        (wanted("colors", clause("dog", 0)), r"include\[0\].count is 0: it must be a whole number from 1"),
        (wanted("colors", clause("dog", 1.5)), r"include\[0\].count is 1.5"),  # type: ignore[arg-type]
        (wanted("colors", clause("dog", 1, color="beige")), "color is 'beige': it must be one of red, orange"),
        (wanted("position", clause("dog", 1, position=["beside", 0])), "'beside': it must be one of left of"),
        (wanted("position", clause("dog", 1, position=["left of", 0])), "must be the index of an earlier clause"),
        (wanted("x", *[clause("dog")] * 33), "at most 32 clauses"),
    ],
)
def test_a_wrong_row_is_a_sentence(metadata: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Specification.read(metadata)


def test_colours_must_be_given_for_every_box() -> None:
    asked = wanted("colors", clause("dog", 1, color="red"))
    with pytest.raises(ValueError, match="colors has no entry for 'dog'"):
        verdict({"dog": [box(0)]}, {}, asked)
    with pytest.raises(ValueError, match="2 boxes have 1 colours"):
        verdict({"dog": [box(0), box(50)]}, {"dog": ["red"]}, asked)
