"""Texts that are given to be learned from. The order in which a run draws them: `trainer.data.dealt`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from trainer.data.prompts.checks import DataError
from trainer.data.rows.table import Table, left_out
from trainer.types import AnswerPair, Conversation

Text = TypeVar("Text", Conversation, AnswerPair)


@dataclass(frozen=True)
class GivenTexts(Generic[Text]):
    """The rows of a section.

    Attributes:
        path: the file, folder or hub id.
        train: what is trained on, in the file's order.
        held_out: what `hold_out` keeps for the evaluation.
        skipped: a sentence for each row that could not be used and was left out.
        notes: what is to be said before training: what a preprocessing file makes of the first row, and what is left out.
    """

    path: str
    train: tuple[Text, ...]
    held_out: tuple[Text, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def without(self, ids: Set[str]) -> GivenTexts[Text]:
        """Without the rows of these ids in training. Raises DataError where no other is left."""
        kept = tuple(row for row in self.train if text_id(row) not in ids)
        if not kept:
            raise DataError(
                f"{self.path}: all of its {len(self.train)} rows are held out, too, so nothing is left to train on; give another "
                "file, or set `data.overlap: allow`"
            )
        return replace(self, train=kept)

    def fingerprint(self) -> str:
        """SHA-256 of the texts that are trained on and of their images' names, in order, wherever they lie: so a resumed run sees
        that it has got another file."""
        whole = hashlib.sha256()
        for row in self.train:
            whole.update(repr(_content(row)).encode())
        return whole.hexdigest()


def _content(row: Conversation | AnswerPair) -> tuple[Any, ...]:
    if isinstance(row, Conversation):
        return row.turns, [Path(image).name for image in row.images]
    return row.prompt.text, row.chosen, row.rejected, [Path(image).name for image in row.prompt.source_images]


def text_id(row: Conversation | AnswerPair) -> str:
    """What a row is called: its file and number."""
    return row.id if isinstance(row, Conversation) else row.prompt.id


def given(
    table: Table, field: str, hold_out: float | None, made_of: Callable[[str, dict[str, Any]], Text]
) -> GivenTexts[Text]:
    """What a function makes of each row of a table. Raises DataError as `Table.make` does."""
    made, problems = table.make(field, made_of)
    notes = table.notes + left_out(field, len(table), problems)
    trained, held = table.parts(hold_out)
    train = tuple(row for number, _, row in made if number in trained)
    if not train:
        raise DataError(f"{field}: {table.path} holds no row to train on: all that can be used are held out")
    held_out = tuple(row for number, _, row in made if number in held)
    return GivenTexts(str(table.path), train, held_out, tuple(problems), notes)
