"""A conversation about images as a sequence: what the assistant says is learnt, everything else is given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.base import did_you_mean
from trainer.data.formats.fields import LONGEST_TEXT, Images, shown_names
from trainer.data.formats.neo.frames import frames_of
from trainer.data.prompts.checks import DataError, check_text, shown
from trainer.data.rows.offsets import OffsetRows
from trainer.data.sequences import ImageItem, Item, Role, SequencePlan, TextItem

ROLES: Mapping[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
IMAGE, VIDEO = "<image>", "<video>"
_MARK = re.compile(f"({IMAGE}|{VIDEO})")
_LIKE = '[{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]'


@dataclass(frozen=True)
class _Turn:
    """What somebody says; learnt where the assistant says it and it is not only given (`is_input`)."""

    role: Role
    text: str
    learnt: bool


@dataclass(frozen=True)
class ConversationPlans:
    """The rows of a file as plans (`trainer.data.sequences.Plans`).

    Attributes:
        name: of the data set.
        rows: a row that is a list of conversations is as many rows: each is a document, which sees no other.
        images: where images lie, and how they are scaled.
        frames: images that a video is read as.
    """

    name: str
    rows: OffsetRows
    images: Images
    frames: int

    def __len__(self) -> int:
        return len(self.rows)

    def plan(self, number: int) -> SequencePlan:
        """Row `number`, from 0. Raises DataError: it cannot be used."""
        where = self.rows.where(number)
        row = self.rows.row(number)
        turns = _turns(where, row)
        shown_images = _listed(where, row, "image", "images")
        paths = [self.images.path(f"{where}: {field}", value) for field, value in shown_images]
        videos = [
            frames_of(f"{where}: {field}", value, self.images, self.frames)
            for field, value in _listed(where, row, "video", "videos")
        ]
        turns = _with_mark(turns, len(paths), len(videos))
        _check_marks(where, turns, IMAGE, len(paths))
        _check_marks(where, turns, VIDEO, len(videos))
        pictures = {IMAGE: iter([(path,) for path in paths]), VIDEO: iter(videos)}
        among = len(paths) + sum(map(len, videos))
        return SequencePlan(where, tuple(item for turn in turns for item in _items(turn, pictures, self.images, among)))


def _turns(where: str, row: Mapping[str, Any]) -> list[_Turn]:
    """The turns of a row. Raises DataError: none, one of another shape, or none that is learnt."""
    value = row.get("conversations")
    if value is None:
        raise DataError(
            f"{where}: conversations: missing; the row's fields are {shown_names(', '.join(map(str, row)) or 'none')}, and a "
            f"conversation is {_LIKE}"
        )
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: conversations: {shown(value)} is no list of turns like {_LIKE}")
    turns = [_turn(f"{where}: conversations[{i}]", each) for i, each in enumerate(value)]
    if not any(turn.learnt for turn in turns):
        raise DataError(f"{where}: conversations: no turn of gpt's is learnt; leave the row out, or add an answer")
    return turns


def _turn(where: str, value: Any) -> _Turn:
    if not isinstance(value, Mapping) or not {"from", "value"} <= value.keys():
        raise DataError(f"{where}: {shown(value)} is no turn; a turn has `from` and `value`, as in {_LIKE}")
    role = ROLES.get(value["from"]) if isinstance(value["from"], str) else None
    if role is None:
        raise DataError(f"{where}: from: {shown(value['from'])} is none of {', '.join(ROLES)}; rename it")
    for name in value:
        if name not in ("from", "value", "is_input") and did_you_mean(str(name), ["is_input"]):
            raise DataError(
                f"{where}: {name}: not known; did you mean is_input, by which an answer is given and not learnt?"
            )
    given = value.get("is_input", False)
    if not isinstance(given, bool):
        raise DataError(f"{where}: is_input: {shown(given)} is neither true nor false")
    text = check_text(f"{where}: value", value["value"], LONGEST_TEXT)
    learnt = role == "assistant" and not given
    if learnt and (mark := _MARK.search(text)):
        raise DataError(
            f"{where}: value: {mark[0]} stands in an answer that is learnt, and no image can be answered; mark it in a turn of human's"
        )
    return _Turn(role, text, learnt)


def _listed(where: str, row: Mapping[str, Any], *names: str) -> list[tuple[str, Any]]:
    """The values of the one of these fields that the row has, each with its place; none where it has neither.

    Raises:
        DataError: both, or an empty list's neighbour: null in a list.
    """
    given = {name: row[name] for name in names if row.get(name) not in (None, "", [])}
    if len(given) > 1:
        raise DataError(f"{where}: {' and '.join(given)} are both given; keep one of them")
    for name, value in given.items():
        return [(f"{name}[{i}]", each) for i, each in enumerate(value)] if isinstance(value, list) else [(name, value)]
    return []


def _with_mark(turns: list[_Turn], images: int, videos: int) -> list[_Turn]:
    """One image or video that no turn marks stands before what the human says first."""
    mark = IMAGE if (images, videos) == (1, 0) else VIDEO if (images, videos) == (0, 1) else None
    if mark is None or any(_MARK.search(turn.text) for turn in turns):
        return turns
    first = next((n for n, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return turns  # which has no mark, and is refused for it
    return [*turns[:first], _Turn("user", f"{mark}\n{turns[first].text}", False), *turns[first + 1 :]]


def _check_marks(where: str, turns: Sequence[_Turn], mark: str, have: int) -> None:
    marks = sum(turn.text.count(mark) for turn in turns)
    if marks != have:
        what = mark.strip("<>")
        raise DataError(
            f"{where}: conversations: {marks} {mark} mark{'s' * (marks != 1)} for {have} {what}{'s' * (have != 1)}; write one for "
            f"each {what}, or leave out what is not there"
        )


def _items(
    turn: _Turn, pictures: Mapping[str, Iterator[tuple[str, ...]]], images: Images, among: int
) -> Iterator[Item]:
    """A turn's texts and images in order. The first is a text, empty where an image comes first, which says whose turn it is."""
    for n, part in enumerate(_MARK.split(turn.text)):
        if n % 2:  # a mark
            yield from (ImageItem(path, "seen", resize=images.seen, among=among) for path in next(pictures[part]))
        elif n == 0 or part:
            yield TextItem(part, learnt=turn.learnt, role=turn.role if n == 0 else None)
