"""What a prompt asks for, as the rows of GenEval's metadata file say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
MAX_CLAUSES = 32
MAX_COUNT = 1000
MAX_NAME = 200


@dataclass(frozen=True)
class Clause:
    """`count` objects of the class `name`; maybe of a colour, maybe placed as (relation, index of an earlier clause)."""

    name: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Specification:
    """A prompt's clauses. `tag` is the task it belongs to; "counting" asks more confidence of the detector."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    @classmethod
    def read(cls, metadata: Mapping[str, object]) -> Specification:
        """Check a row of the metadata file. Fields beside tag, include and exclude are passed over.

        Raises:
            ValueError: names the field that is missing or wrong, what it is and what it should be.
        """
        tag = metadata.get("tag")
        if not isinstance(tag, str):
            raise ValueError(f"metadata.tag is {tag!r}: it must be a task, such as {', '.join(TAGS)}")
        include = _clauses("include", metadata.get("include", []))
        exclude = _clauses("exclude", metadata.get("exclude", []))
        if not include and not exclude:
            raise ValueError("metadata has no include and no exclude: there is nothing to look for")
        return cls(tag, include, exclude)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes a detector must look for, each once, in the order they are asked for."""
        return tuple(dict.fromkeys(clause.name for clause in (*self.include, *self.exclude)))


def _clauses(field: str, value: object) -> tuple[Clause, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > MAX_CLAUSES:
        raise ValueError(f"metadata.{field} must be a list of at most {MAX_CLAUSES} clauses")
    return tuple(_clause(f"metadata.{field}[{index}]", index, entry) for index, entry in enumerate(value))


def _clause(where: str, index: int, entry: object) -> Clause:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is {type(entry).__name__}: it must have the fields class and count")
    name, count, color = entry.get("class"), entry.get("count", 1), entry.get("color")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"{where}.class must be a name of 1 to {MAX_NAME} characters")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_COUNT:
        raise ValueError(f"{where}.count is {count!r}: it must be a whole number from 1 to {MAX_COUNT}")
    if color is not None and color not in COLORS:
        raise ValueError(f"{where}.color is {color!r}: it must be one of {', '.join(COLORS)}")
    return Clause(name, count, color, _position(where, index, entry.get("position")))


def _position(where: str, index: int, value: object) -> tuple[str, int] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"{where}.position must be a relation and the index of an earlier clause")
    relation, target = value
    if relation not in RELATIONS:
        raise ValueError(f"{where}.position[0] is {relation!r}: it must be one of {', '.join(RELATIONS)}")
    if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < index:
        raise ValueError(f"{where}.position[1] is {target!r}: it must be the index of an earlier clause, below {index}")
    return relation, target
