"""Pairs of answers to a prompt, of which one is preferred, in the shapes that data sets have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config.texts import TextFileConfig
from trainer.data.given_texts import GivenTexts, given
from trainer.data.prompts.checks import DataError, check_text, shown
from trainer.data.questions import asked, question_column, question_text
from trainer.data.rows.pictures import MARK, mark_count, row_images
from trainer.data.rows.table import Table, open_table, text_of
from trainer.data.rows.turns import image_parts, is_messages, read_turns
from trainer.types import AnswerPair, Prompt, Turn

CHOSEN = ("chosen", "chosen_answer", "winner_answer")
REJECTED = ("rejected", "rejected_answer", "loser_answer")


def read_answers(config: TextFileConfig, *, field: str, dataset: str, max_images: int) -> GivenTexts[AnswerPair]:
    """The pairs of a section. A side is a text, or a list of messages that ends with the assistant's; where no column has the
    prompt, it is what both lists begin with.

    Args:
        field: the section's name, for messages.
        dataset: what the prompts' data set is called.
        max_images: how many images a prompt may have.

    Raises:
        DataError: no such data, or rows that cannot be used, each named, unless `config.bad_rows` leaves them out.
    """
    table = open_table(config, field=field, path=config.path, format=config.format, image_dir=config.image_dir)
    return given(table, field, config.hold_out, lambda where, row: pair(where, row, table, dataset, max_images))


def pair(where: str, row: Mapping[str, Any], table: Table, dataset: str, max_images: int) -> AnswerPair:
    """A row as a pair. Raises DataError: what is wrong, with place, field, value and remedy."""
    better, worse = _column(where, row, CHOSEN), _column(where, row, REJECTED)
    chosen, before = _side(f"{where}: {better}", row[better])
    rejected, also_before = _side(f"{where}: {worse}", row[worse])
    if before != also_before:
        raise DataError(
            f"{where}: {better} and {worse} answer different prompts ({shown(_said(before))}, {shown(_said(also_before))}); they are "
            "two answers to one"
        )
    if before:
        column = better
        if len(before) != 1 or before[0].role != "user":
            roles = ", ".join(turn.role for turn in before)
            raise DataError(
                f"{where}: {better}: {len(before)} turns ({roles}) stand before the answer, where one of the user's belongs; a system "
                "turn for all is policy.system_prompt"
            )
        text = before[0].text
    else:
        column = question_column(where, row)
        text = question_text(f"{where}: {column}", row[column])
    parts = image_parts(f"{where}: {column}", asked(f"{where}: {column}", row[column]))
    images, _ = row_images(where, row, table.folders(where), table.store, max_images, parts)
    if chosen == rejected:
        raise DataError(
            f"{where}: {better} and {worse} are both {shown(chosen)}, so neither is preferred; leave the row out"
        )
    mark_count(where, column, [text], len(images))
    return AnswerPair(Prompt(where, text, dataset, source_images=images), chosen, rejected)


def _column(where: str, row: Mapping[str, Any], names: Sequence[str]) -> str:
    found = [name for name in names if row.get(name) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{where}: {' and '.join(found)} could both be the {names[0]} answer; keep one of them")
    raise DataError(
        f"{where}: {names[0]}: missing; the row has {', '.join(row) or 'no column'}, and one must be {', '.join(names)}: name it by "
        "`rename_columns`"
    )


def _side(where: str, value: Any) -> tuple[str, tuple[Turn, ...]]:
    """An answer, and the turns before it."""
    tree = asked(where, value)
    if not is_messages(tree):
        text = check_text(where, text_of(where, tree))
        if MARK in text:
            raise DataError(f"{where}: {MARK} marks an image in an answer; images are shown by the user")
        return text, ()
    turns = read_turns(where, tree)
    if turns[-1].role != "assistant":
        raise DataError(f"{where}: ends with the {turns[-1].role}'s turn, where the assistant's belongs; complete it")
    return turns[-1].text, turns[:-1]


def _said(turns: Sequence[Turn]) -> str:
    return " / ".join(turn.text for turn in turns)


def answer_prompts(rows: GivenTexts[AnswerPair]) -> list[Prompt]:
    """The prompts of the pairs, for what is said of all prompts that training sees."""
    return [row.prompt for row in rows.train]
