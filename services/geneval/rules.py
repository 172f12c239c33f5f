"""GenEval's rules: what detected boxes must be like for an image to pass its prompt's specification.

Pure functions of boxes, colours and numbers; no detector and no image. The published evaluation is that of Ghosh et al.,
"GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment", 2023, section 3 and its released code;
`strict` and `soft` are the two scores of the reward server that Flow-GRPO trains with (Liu et al., 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from services.geneval.specification import Clause, Specification

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MAX_OBJECTS = 16
POSITION_MARGIN = 0.1

Box = Sequence[float]
"""x1, y1, x2, y2 in pixels from the top left, and the detector's confidence from 0 to 1."""


@dataclass(frozen=True)
class ClauseReport:
    """What became of one clause: how many objects it wanted and found, and what was wrong with them ("" if nothing)."""

    wanted: int
    found: int
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Verdict:
    """An image judged in four ways.

    correct: the benchmark's. At least the asked number of every object, none of the excluded ones too often.
    strict: the reward server's. Exactly the asked number of every object.
    soft: the reward server's marks, averaged, with its quirks: a count far above the asked one gives a mark below 0, a
        failed position gives a 0 and a 1, and exclusions give no mark.
    soft_plain: the same idea without the quirks, 0 to 1: marks are never below 0 and a failed position gives 0 alone.
    clauses: one report for each included clause, by the benchmark's rule.
    kept: the boxes that counted, by class, best first.
    """

    correct: bool
    strict: bool
    soft: float
    soft_plain: float
    clauses: tuple[ClauseReport, ...]
    exclusions: tuple[ClauseReport, ...]
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass
class _Found:
    """Boxes of one class that passed threshold and cap, best first, with the colour of each."""

    boxes: list[Box]
    colors: list[str]
    indices: tuple[int, ...]


def verdict(
    detections: Mapping[str, Sequence[Box]],
    colors: Mapping[str, Sequence[str]],
    metadata: Mapping[str, object] | Specification,
    *,
    threshold: float = THRESHOLD,
    counting_threshold: float = COUNTING_THRESHOLD,
    max_objects: int = MAX_OBJECTS,
    position_margin: float = POSITION_MARGIN,
) -> Verdict:
    """Judge one image by GenEval's rules.

    Args:
        detections: class name to its boxes, in any order.
        colors: class name to the colour that a classifier gives each of these boxes, in the same order; needed for
            classes of which a colour is asked.
        metadata: a row of GenEval's metadata file, or a Specification made of it.
        threshold: boxes at or below this confidence do not count; for the task "counting" it is `counting_threshold`,
            because a detector that is unsure sees one thing twice.
        max_objects: as many boxes of a class count at most, those of highest confidence.
        position_margin: this share of both boxes' sizes is taken off the distance of their centres.

    Raises:
        ValueError: the metadata is not a specification, or a class with an asked colour has no colours.
    """
    specification = metadata if isinstance(metadata, Specification) else Specification.read(metadata)
    least = counting_threshold if specification.tag == "counting" else threshold
    found = {name: _select(boxes, colors.get(name), least, max_objects) for name, boxes in detections.items()}
    for clause in specification.include:
        if clause.color is not None and clause.name in found and clause.name not in colors:
            raise ValueError(f"colors has no entry for {clause.name!r}, of which the colour {clause.color} is asked")
    correct, reports = _at_least(specification, found, position_margin)
    exclusions = tuple(_excluded(clause, found) for clause in specification.exclude)
    strict, soft, plain = _exactly(specification, found, position_margin)
    return Verdict(
        correct=correct and all(report.passed for report in exclusions),
        strict=strict and all(report.passed for report in exclusions),
        soft=soft,
        soft_plain=plain,
        clauses=tuple(reports),
        exclusions=exclusions,
        kept={name: each.indices for name, each in found.items()},
    )


def relations(box: Box, other: Box, margin: float = POSITION_MARGIN) -> set[str]:
    """Where `box` is as seen from `other`: of "left of", "right of", "above" and "below" none, one or two.

    The centres' offset is shortened by `margin` of both boxes' widths (heights), so that boxes that lie nearly on
    each other have no relation; what remains must be more than half of the offset's length in that direction.
    """
    first, second = np.asarray(box[:4], float).reshape(2, 2), np.asarray(other[:4], float).reshape(2, 2)
    offset = first.mean(axis=0) - second.mean(axis=0)
    sizes = np.abs(first[1] - first[0]) + np.abs(second[1] - second[0])
    remaining = np.maximum(np.abs(offset) - margin * sizes, 0) * np.sign(offset)
    if np.all(np.abs(remaining) < 1e-3):
        return set()
    dx, dy = remaining / np.linalg.norm(offset)
    named = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in named.items() if holds}


def _select(boxes: Sequence[Box], colors: Sequence[str] | None, least: float, most: int) -> _Found:
    if colors is not None and len(colors) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes have {len(colors)} colours: give one for each box")
    order = sorted(range(len(boxes)), key=lambda index: boxes[index][4], reverse=True)
    kept = tuple(index for index in order if boxes[index][4] > least)[:most]
    return _Found([boxes[i] for i in kept], [colors[i] for i in kept] if colors is not None else [], kept)


def _at_least(
    specification: Specification, found: Mapping[str, _Found], margin: float
) -> tuple[bool, list[ClauseReport]]:
    """The benchmark's rule: the best `count` boxes of each class must be there, coloured and placed as asked."""
    reports: list[ClauseReport] = []
    matched: list[list[Box] | None] = []  # of each clause so far, for the positions of later ones
    for clause in specification.include:
        here = found.get(clause.name, _Found([], [], ()))
        boxes, names = here.boxes[: clause.count], here.colors[: clause.count]
        reason = ""
        if len(boxes) < clause.count:
            reason = f"expected {clause.count} {clause.name}, found {len(boxes)}"
        else:
            if clause.color is not None and names.count(clause.color) < clause.count:
                reason = _colour_reason(clause, names)
            if clause.position is not None and not reason:
                reason = _position_reason(clause, boxes, matched, margin)
        matched.append(None if reason else boxes)
        reports.append(ClauseReport(clause.count, len(here.boxes), reason))
    return all(report.passed for report in reports), reports


def _exactly(specification: Specification, found: Mapping[str, _Found], margin: float) -> tuple[bool, float, float]:
    """The reward server's rule: (strict, soft with its quirks, soft without them)."""
    marks: list[float] = []
    plain: list[float] = []
    matched: list[list[Box] | None] = []
    strict = True
    for clause in specification.include:
        here = found.get(clause.name, _Found([], [], ()))
        holds = len(here.boxes) == clause.count
        mark = 1 - abs(clause.count - len(here.boxes)) / clause.count
        marks.append(mark)
        plain.append(max(mark, 0.0))
        if not holds and (clause.color is not None or clause.position is not None):
            marks.append(0.0)
            plain.append(0.0)
        if holds and clause.color is not None:
            right = here.colors.count(clause.color)
            holds = right == clause.count
            marks.append(1 - abs(clause.count - right) / clause.count)
            plain.append(marks[-1])
        if holds and clause.position is not None:
            placed = not _position_reason(clause, here.boxes, matched, margin)
            target_seen = matched[clause.position[1]] is not None
            # The quirk: a wrong place adds a 0 and then, as a right one, a 1; a missing target adds the 0 alone.
            marks.extend([1.0] if placed else [0.0, 1.0] if target_seen else [0.0])
            plain.append(float(placed))
            holds = placed
        matched.append(here.boxes if holds else None)
        strict = strict and holds
    return strict, _mean(marks), _mean(plain)


def _position_reason(clause: Clause, boxes: Sequence[Box], matched: Sequence[list[Box] | None], margin: float) -> str:
    """Why the boxes are not placed as asked in relation to an earlier clause's boxes; "" if they are."""
    assert clause.position is not None, "asked only of clauses with a position"
    relation, index = clause.position
    targets = matched[index]
    if targets is None:
        return f"no target for {clause.name} to be {relation}"
    for box in boxes:
        for target in targets:
            seen = relations(box, target, margin)
            if relation not in seen:
                return f"expected {clause.name} {relation} target, found {' and '.join(sorted(seen)) or 'neither side'}"
    return ""


def _colour_reason(clause: Clause, names: Sequence[str]) -> str:
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    seen = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"expected {clause.count} {clause.color} {clause.name}, found {seen or 'no colour'}"


def _excluded(clause: Clause, found: Mapping[str, _Found]) -> ClauseReport:
    """An excluded class may be seen fewer than `count` times."""
    seen = len(found.get(clause.name, _Found([], [], ())).boxes)
    reason = f"expected fewer than {clause.count} {clause.name}, found {seen}" if seen >= clause.count else ""
    return ClauseReport(clause.count, seen, reason)


def _mean(marks: Sequence[float]) -> float:
    return sum(marks) / len(marks) if marks else 0.0
