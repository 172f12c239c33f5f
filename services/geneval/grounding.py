"""T2I-R1's `gdino` reward: what an open-vocabulary detector must find, by the kind of prompt.

Pure functions of boxes. The formulas are those of the released reward (Jiang et al., "T2I-R1", 2025), quirks included:
"next to" holds for any two boxes, and "on top of", "above" and "on side of" an object are never seen as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Box = Sequence[float]
"""x1, y1, x2, y2 in pixels from the top left, and the detector's confidence from 0 to 1."""

THRESHOLD = 0.3
_NMS_IOU = 0.5
_OVERLAP = 0.1  # boxes that overlap more than this are placed less clearly
_SEEN = 0.2  # for each of the two objects of a spatial prompt
_WRONG_COUNT = 0.2
_NEAR = frozenset({"next to", "near", "on side of"})
_SIDES = {
    "on the left of": (0, -1),
    "left of": (0, -1),
    "on the right of": (0, 1),
    "right of": (0, 1),
    "on the top of": (1, -1),
    "top of": (1, -1),
    "on the bottom of": (1, 1),
    "below": (1, 1),
}  # axis (0 x, 1 y) and the direction in which the first object's centre lies


@dataclass(frozen=True)
class GroundingTask:
    """What to look for. kind: "object", "numeracy" or "spatial".

    nouns: of an object prompt. counts: (noun, number) of a numeracy prompt. pair: (first, relation, second) of a
    spatial one.
    """

    kind: str
    nouns: tuple[str, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    pair: tuple[str, str, str] | None = None

    @classmethod
    def read(cls, metadata: Mapping[str, object]) -> GroundingTask:
        """From the fields of T2I-R1's data: task_type, nouns, numeracy_info, spatial_info.

        Raises:
            ValueError: names the field that is missing or wrong.
        """
        kind = metadata.get("task_type")
        if kind == "spatial":
            info = metadata.get("spatial_info")
            fields = ("obj1", "locality", "obj2")
            if not isinstance(info, Mapping) or not all(isinstance(info.get(field), str) for field in fields):
                raise ValueError(f"metadata.spatial_info must have the texts {', '.join(fields)}")
            return cls("spatial", pair=(str(info["obj1"]), str(info["locality"]), str(info["obj2"])))
        if kind == "numeracy":
            return cls("numeracy", counts=_counts(metadata.get("numeracy_info")))
        nouns = metadata.get("nouns")
        if (
            not isinstance(nouns, Sequence)
            or isinstance(nouns, str)
            or not all(isinstance(noun, str) for noun in nouns)
        ):
            raise ValueError("metadata.nouns must be a list of texts")
        return cls("object", nouns=tuple(nouns))

    @property
    def names(self) -> tuple[str, ...]:
        """What a detector must look for, each once."""
        pair = (self.pair[0], self.pair[2]) if self.pair else ()
        return tuple(dict.fromkeys([*self.nouns, *(noun for noun, _ in self.counts), *pair]))


def gdino_score(detections: Mapping[str, Sequence[Box]], task: GroundingTask, threshold: float = THRESHOLD) -> float:
    """0 to 1. Objects: the share that is seen. Numeracy: 1 for a right count, 0.2 for a wrong one above 0, averaged.

    Spatial: 0.2 for each object seen, and half of how clearly they are placed, at most 0.9 in all.
    Raises ValueError when the task asks for nothing.
    """
    seen = {name: [box for box in detections.get(name, ()) if box[4] > threshold] for name in task.names}
    if not seen:
        raise ValueError("the task names no object to look for")
    if task.kind == "numeracy":
        marks = [_count_mark(seen[noun], number) for noun, number in task.counts]
        return sum(marks) / len(marks)
    if task.pair is not None:
        first, relation, second = task.pair
        found = [max(seen[name], key=lambda box: box[4]) for name in (first, second) if seen[name]]
        placed = placement(relation, found[0], found[1]) if len(found) == 2 else 0.0
        return _SEEN * len(found) + placed / 2
    return sum(bool(seen[noun]) for noun in task.nouns) / len(task.nouns)


def placement(relation: str, box: Box, other: Box) -> float:
    """How clearly `box` lies on the named side of `other`: 1, less where they overlap by more than a tenth, or 0."""
    if relation in _NEAR:
        return 1.0
    if relation not in _SIDES:
        return 0.0
    axis, sign = _SIDES[relation]
    offset = [(box[k] + box[k + 2]) / 2 - (other[k] + other[k + 2]) / 2 for k in (0, 1)]
    if offset[axis] * sign <= 0 or abs(offset[axis]) <= abs(offset[1 - axis]):
        return 0.0
    shared = overlap(box, other)
    return 1.0 if shared < _OVERLAP else _OVERLAP / shared


def overlap(box: Box, other: Box) -> float:
    """Intersection over union, 0 to 1; 0 of two boxes without area."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (box, other)) - shared
    return shared / union if union > 0 else 0.0


def suppress(boxes: Sequence[Box], most: float) -> list[Box]:
    """Boxes of one class without those that overlap a more confident one by more than `most`; best first."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda each: each[4], reverse=True):
        if all(overlap(box, other) <= most for other in kept):
            kept.append(box)
    return kept


def _count_mark(boxes: Sequence[Box], wanted: int) -> float:
    if not boxes:
        return 0.0
    return 1.0 if len(suppress(boxes, _NMS_IOU)) == wanted else _WRONG_COUNT


def _counts(info: object) -> tuple[tuple[str, int], ...]:
    if not isinstance(info, Sequence) or isinstance(info, str):
        raise ValueError("metadata.numeracy_info must be a list of objects with num and obj_name")
    found = []
    for index, entry in enumerate(info):
        number, name = (entry.get("num"), entry.get("obj_name")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(number, int) or isinstance(number, bool) or number < 0 or not isinstance(name, str):
            raise ValueError(f"metadata.numeracy_info[{index}] must have num, a whole number, and obj_name, a text")
        found.append((name, number))
    return tuple(found)
