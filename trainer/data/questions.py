"""Prompts of policies that write: a question, the images that it is about, its right answers, and all other columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.texts import RowsConfig
from trainer.data.prompts import PromptFile
from trainer.data.prompts.checks import (
    MAX_TARGET_LENGTH,
    DataError,
    check_metadata,
    check_targets,
    check_text,
)
from trainer.data.rows.pictures import mark_count, row_images
from trainer.data.rows.table import Table, left_out, open_table, text_of
from trainer.data.rows.turns import image_parts, is_messages, parsed, read_turns
from trainer.types import Prompt

QUESTIONS = ("prompt", "question", "problem", "query", "instruction")  # the first that a row has is the text
ANSWERS = ("answer", "solution")  # the first that is a text, a number or a list of them makes the targets
_RENAMED = ("original_answer", "expected_answer")  # become `answer` where a row has none


@dataclass(frozen=True)
class QuestionFile:
    """Prompts of a section, those of them that are held out, and what is to be said of them before training."""

    train: PromptFile
    held_out: tuple[Prompt, ...] = ()
    notes: tuple[str, ...] = ()


def read_questions(
    config: RowsConfig,
    *,
    path: str,
    field: str,
    dataset: str,
    weights: Mapping[str, float] | None = None,
    split: str = "train",
    prompt_column: str | None = None,
    image_dir: str | None = None,
    hold_out: float | None = None,
    max_images: int,
) -> QuestionFile:
    """The prompts of a section's rows; rows that say the same again are dropped with a warning, as in all prompt files.

    Args:
        field: the section's name, for messages.
        split: what is read where the section names none.
        hold_out: this share is held out.
        max_images: how many images a prompt may have.

    Raises:
        DataError: no such data, or rows that cannot be used, each named, unless `config.bad_rows` leaves them out.
    """
    table = open_table(config, field=field, path=path, split=split, image_dir=image_dir)
    made, skipped = table.make(
        field, lambda where, row: question(where, row, table, dataset, weights or {}, max_images, prompt_column)
    )
    trained, held = table.parts(hold_out)
    first: dict[str, str] = {}
    kept: list[tuple[int, Prompt]] = []
    again: list[str] = []
    for number, where, prompt in made:
        if prompt.id in first:
            again.append(f"{where} says what {first[prompt.id]} says")
            continue
        first[prompt.id] = where
        kept.append((number, prompt))
    train = [(number, prompt) for number, prompt in kept if number in trained]
    if not train:
        raise DataError(f"{field}: {path} holds no row to train on; all are held out, or say the same")
    lines = tuple(number + 1 for number, _ in train)
    file = PromptFile(Path(path), tuple(prompt for _, prompt in train), lines, len(again), tuple(skipped))
    notes = (*table.notes, *left_out(field, len(table), skipped))
    if again:
        notes += (f"{field}: {len(again)} rows come again and are drawn once an epoch, such as: {again[0]}",)
    return QuestionFile(file, tuple(prompt for number, prompt in kept if number in held), notes)


def question(
    where: str,
    row: Mapping[str, Any],
    table: Table,
    dataset: str,
    weights: Mapping[str, float],
    max_images: int,
    prompt_column: str | None = None,
) -> Prompt:
    """A row as a prompt.

    Its metadata are the columns besides `prompt` and the images; an object in `metadata` is spread out among them. Its targets
    are `targets`, else the answer.

    Raises:
        DataError: what is wrong, with place, field, value and remedy.
    """
    column = question_column(where, row, prompt_column)
    text = question_text(f"{where}: {column}", row[column])
    parts = image_parts(f"{where}: {column}", asked(f"{where}: {column}", row[column]))
    images, image_columns = row_images(where, row, table.folders(where), table.store, max_images, parts)
    mark_count(where, column, [text], len(images))
    columns = {
        name: value for name, value in row.items() if name not in image_columns and name not in ("prompt", "metadata")
    }
    for old in _RENAMED:
        if columns.get(old) is not None and columns.get("answer") is None:
            columns["answer"] = columns.pop(old)
    own = check_metadata(f"{where}: metadata", row.get("metadata"))
    if both := sorted(own.keys() & columns.keys()):
        raise DataError(f"{where}: {both[0]} is a column and also in metadata; keep one of them")
    targets = check_targets(f"{where}: targets", columns.pop("targets", None)) or right_answers(where, columns)
    metadata = check_metadata(where, {**columns, **own})
    names = [Path(image).name for image in images]
    whole = json.dumps([text, names, targets, metadata], sort_keys=True)
    name = f"{dataset}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"
    return Prompt(name, text, dataset, weights, targets, metadata, images, place=where)


def question_column(where: str, row: Mapping[str, Any], asked: str | None = None) -> str:
    """The column of a row's text. Raises DataError: there is none."""
    if asked is not None:
        if row.get(asked) is None:
            raise DataError(f"{where}: prompt_column = {asked}: missing; the row has {', '.join(row) or 'no column'}")
        return asked
    found = next((name for name in QUESTIONS if row.get(name) is not None), None)
    if found is None:
        raise DataError(
            f"{where}: prompt: missing; the row has {', '.join(row) or 'no column'}, and one must be {', '.join(QUESTIONS)}: name it "
            "by `prompt_column` or `rename_columns`"
        )
    return found


def question_text(where: str, value: Any) -> str:
    """What the user asks: a text, or a list of messages with one turn of the user's.

    Raises:
        DataError: another shape, or more than that turn, which a prompt cannot say.
    """
    tree = asked(where, value)
    if not is_messages(tree):
        return check_text(where, text_of(where, tree))
    turns = read_turns(where, tree)
    if turns[0].role == "system":
        raise DataError(
            f"{where}: a system turn, which a prompt does not have; leave it out, and say it for all prompts by policy.system_prompt"
        )
    if len(turns) != 1 or turns[0].role != "user":
        said = ", ".join(turn.role for turn in turns)
        raise DataError(f"{where}: {len(turns)} turns ({said}), where one of the user's belongs; leave the others out")
    return turns[0].text


def asked(where: str, value: Any) -> Any:
    """What a column holds: a text, or messages, read from JSON where a text is surely that of messages."""
    return parsed(where, value) if isinstance(value, str) and value.lstrip().startswith('[{"') else value


def right_answers(where: str, columns: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The targets that a row's answer makes: `answer`, else `solution`, where it is a text, a number or a list of these.

    A whole number has no decimals, whatever its type. Anything else, and what is longer than a target may be, makes none and
    stays a column.
    """
    for name in ANSWERS:
        value = columns.get(name)
        listed = value if isinstance(value, list | tuple) else [value]
        texts = [_answer(each) for each in listed]
        if texts and all(text is not None and text.strip() and len(text) <= MAX_TARGET_LENGTH for text in texts):
            return check_targets(f"{where}: {name}", texts)
    return None


def _answer(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
