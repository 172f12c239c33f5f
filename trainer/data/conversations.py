"""Conversations that a policy learns the assistant's part of, in the shapes that data sets have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.config.texts import TextFileConfig
from trainer.data.given_texts import GivenTexts, given
from trainer.data.prompts.checks import DataError
from trainer.data.questions import question_column, question_text
from trainer.data.rows.pictures import mark_count, row_images
from trainer.data.rows.table import Table, open_table, text_of
from trainer.data.rows.turns import check_order, image_parts, is_messages, read_turns
from trainer.types import Conversation, Prompt, Turn

COLUMNS = ("texts", "messages", "conversations", "conversation")


def read_conversations(config: TextFileConfig, *, field: str, max_images: int) -> GivenTexts[Conversation]:
    """The conversations of a section, from `texts` ({user, assistant}), `messages` ({role, content}), `conversations`
    (ShareGPT's {from, value}, or {role, content}), or `prompt` and `completion`.

    Args:
        field: the section's name, for messages.
        max_images: how many images a conversation may have.

    Raises:
        DataError: no such data, or rows that cannot be used, each named, unless `config.bad_rows` leaves them out.
    """
    table = open_table(config, field=field, path=config.path, format=config.format, image_dir=config.image_dir)
    return given(table, field, config.hold_out, lambda where, row: conversation(where, row, table, max_images))


def conversation(where: str, row: Mapping[str, Any], table: Table, max_images: int) -> Conversation:
    """A row as a conversation. Raises DataError: what is wrong, with place, field, value and remedy."""
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None and row.get("completion") is not None:
        turns, column = _completed(where, row), question_column(where, row)
    elif column is None:
        raise DataError(
            f"{where}: texts: missing; the row has {', '.join(row) or 'no column'}, and one must be {', '.join(COLUMNS)}, or two "
            "prompt and completion: name it by `rename_columns`"
        )
    else:
        turns = read_turns(f"{where}: {column}", row[column])
    check_order(f"{where}: {column}", turns, last="assistant")
    parts = image_parts(f"{where}: {column}", row[column])
    images, _ = row_images(where, row, table.folders(where), table.store, max_images, parts)
    mark_count(where, column, [turn.text for turn in turns if turn.role == "user"], len(images))
    return Conversation(where, turns, images)


def conversation_prompts(rows: GivenTexts[Conversation], dataset: str) -> list[Prompt]:
    """Each user turn as a prompt with the conversation's images, for what is said of all prompts that training sees."""
    return [
        Prompt(row.id, turn.text, dataset, source_images=row.images)
        for row in rows.train
        for turn in row.turns
        if turn.role == "user"
    ]


def _completed(where: str, row: Mapping[str, Any]) -> tuple[Turn, ...]:
    column = question_column(where, row)
    prompt, completion = row[column], row["completion"]
    if is_messages(completion):
        asked = read_turns(f"{where}: {column}", prompt) if is_messages(prompt) else (_asked(where, column, prompt),)
        return (*asked, *read_turns(f"{where}: completion", completion))
    answer = text_of(f"{where}: completion", completion)
    return _asked(where, column, prompt), *read_turns(
        f"{where}: completion", [{"role": "assistant", "content": answer}]
    )


def _asked(where: str, column: str, prompt: Any) -> Turn:
    return Turn("user", question_text(f"{where}: {column}", prompt))
