"""T2I-R1's gdino on boxes made by hand: each kind of prompt, with the published quirks."""

from __future__ import annotations

from typing import Any

import pytest

from services.geneval.grounding import GroundingTask, gdino_score, overlap, suppress


def box(x: float, y: float = 100, confidence: float = 0.9, side: float = 40) -> list[float]:
    return [x, y, x + side, y + side, confidence]


def score(detections: dict[str, list[list[float]]], **metadata: Any) -> float:
    return gdino_score(detections, GroundingTask.read(metadata))


def test_objects_score_the_share_that_is_seen() -> None:
    assert score({"dog": [box(0)], "cup": []}, task_type="attribute", nouns=["dog", "cup"]) == 0.5
    assert score({"dog": [box(0, confidence=0.3)]}, task_type="attribute", nouns=["dog"]) == 0


def test_numbers_score_one_if_right_and_a_fifth_if_only_seen() -> None:
    info = [{"num": 2, "obj_name": "dog"}, {"num": 1, "obj_name": "cup"}]
    both = {"dog": [box(0), box(100)], "cup": [box(200)]}
    assert score(both, task_type="numeracy", numeracy_info=info) == 1
    doubled = {"dog": [box(0), box(100), box(2, confidence=0.5)], "cup": []}  # the third lies on the first
    assert score(doubled, task_type="numeracy", numeracy_info=info) == 0.5
    assert score({"dog": [box(0)]}, task_type="numeracy", numeracy_info=info) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("locality", "first", "expected"),
    [
        ("on the left of", box(0), 0.9),
        ("left of", box(400), 0.4),
        ("right of", box(400), 0.9),
        ("on the right of", box(400, 900), 0.4),  # farther below than to the right
        ("on the top of", box(200, 0), 0.9),
        ("below", box(200, 400), 0.9),
        ("next to", box(5000, 5000), 0.9),  # published: holds for any two boxes
        ("on top of", box(200, 0), 0.4),  # published: never seen as such
        ("above", box(200, 0), 0.4),
    ],
)
def test_places(locality: str, first: list[float], expected: float) -> None:
    info = {"obj1": "dog", "locality": locality, "obj2": "cup"}
    assert score({"dog": [first], "cup": [box(200)]}, task_type="spatial", spatial_info=info) == pytest.approx(expected)


def test_overlapping_boxes_are_placed_less_clearly_and_the_surest_box_counts() -> None:
    info = {"obj1": "dog", "locality": "left of", "obj2": "cup"}
    near, cup = box(180), box(200)
    shared = overlap(near, cup)
    assert shared == pytest.approx(1 / 3)
    found = score({"dog": [near, box(900, confidence=0.5)], "cup": [cup]}, task_type="spatial", spatial_info=info)
    assert found == pytest.approx(0.4 + 0.1 / shared / 2)
    assert score({"dog": [near]}, task_type="spatial", spatial_info=info) == pytest.approx(0.2)


def test_suppression_keeps_the_surest_of_overlapping_boxes() -> None:
    boxes = [box(0, confidence=0.5), box(3, confidence=0.8), box(300, confidence=0.4)]
    assert suppress(boxes, 0.5) == [boxes[1], boxes[2]]


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"task_type": "spatial"}, "metadata.spatial_info must have the texts obj1, locality, obj2"),
        ({"task_type": "numeracy", "numeracy_info": [{"num": "2"}]}, r"numeracy_info\[0\] must have num"),
        ({"task_type": "attribute", "nouns": "dog"}, "metadata.nouns must be a list of texts"),
    ],
)
def test_a_wrong_row_is_a_sentence(metadata: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GroundingTask.read(metadata)
