"""Conversations in every shape that data sets have, and each wrong row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.text_rows import png, text_file, write_jsonl, write_parquet
from trainer.data.conversations import conversation_prompts, read_conversations
from trainer.data.given_texts import GivenTexts
from trainer.data.prompts import DataError
from trainer.types import Conversation, Turn

ASKED, SAID = "What is it?", "A cat."
TURNS = (Turn("user", ASKED), Turn("assistant", SAID))


def read(path: Path, *, max_images: int = 4, **fields: Any) -> GivenTexts[Conversation]:
    return read_conversations(text_file(path, **fields), field="conversations", max_images=max_images)


def one(folder: Path, row: dict[str, Any]) -> Conversation:
    (found,) = read(write_jsonl(folder / "a.jsonl", [row])).train
    return found


@pytest.mark.parametrize(
    "row",
    [
        {"texts": [{"user": ASKED, "assistant": SAID}]},
        {"texts": {"user": ASKED, "assistant": SAID, "source": "made"}},
        {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]},
        {"conversations": [{"from": "user", "value": ASKED}, {"from": "assistant", "value": SAID}]},
        {"conversations": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]},
        {"conversations": json.dumps([{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}])},
        {"conversation": [{"from": "human", "value": ASKED}, {"from": "GPT", "value": SAID}]},
        {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ASKED}]}, {"role": "model", "content": [SAID]}]},
        {"prompt": ASKED, "completion": SAID},
        {"prompt": [{"role": "user", "content": ASKED}], "completion": [{"role": "assistant", "content": SAID}]},
        {"messages": None, "texts": [{"user": ASKED, "assistant": SAID}]},
    ],
)  # fmt: skip
def test_every_shape_says_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    assert one(tmp_path, row) == Conversation(f"{tmp_path / 'a.jsonl'}:1", TURNS)


def test_the_roles_of_tables_are_read_too(tmp_path: Path) -> None:
    """Parquet gives every message all keys; those that are not there are null."""
    rows = [
        {
            "image": {"bytes": png((1, 2, 3)), "path": None},
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": ASKED}]},
                {"role": "assistant", "content": [{"type": "text", "text": SAID}]},
            ],
        }
    ]
    (found,) = read(write_parquet(tmp_path / "a.parquet", rows)).train
    assert found.turns == (Turn("system", "Be brief."), *TURNS) and len(found.images) == 1
    assert [(p.id, p.text, p.source_images) for p in conversation_prompts(read(tmp_path / "a.parquet"), "sft")] == [
        (found.id, ASKED, found.images)
    ]


def test_several_pairs_are_turns_one_after_the_other(tmp_path: Path) -> None:
    found = one(tmp_path, {"texts": [{"user": "a", "assistant": "b"}, {"user": "c", "assistant": "d"}]})
    assert [turn.text for turn in found.turns] == ["a", "b", "c", "d"]


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "x"} for role in roles]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "x"}, "texts: missing; the row has text, and one must be texts, messages, conversations, conversation, or two prompt and completion"),
        ({"texts": []}, "texts: [] is no list of turns like"),
        ({"texts": "hello"}, "texts: 'hello' is no list of turns like"),
        ({"texts": "[{broken"}, "texts: '[{broken' is neither turns nor JSON of them"),
        ({"texts": ["hello"]}, "texts[0]: 'hello' is a str, not a turn like"),
        ({"texts": [{"user": "x"}]}, "texts[0]: assistant: missing"),
        ({"texts": [{"user": "x", "assistant": ""}]}, "texts[0]: assistant: the text is empty"),
        ({"texts": [{"user": "x", "assistant": 4}]}, "texts[0]: assistant: 4 is a int, not a text"),
        ({"texts": [{"question": "x", "reply": "y"}]}, "texts[0]: has the keys question, reply; a turn has from and value, role and content, or user and assistant"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "conversations[0]: role 'tool' is not among"),
        ({"messages": turns("user")}, "messages: ends with the user's turn, where the assistant's belongs"),
        ({"messages": turns("assistant", "user", "assistant")}, "messages: turn 1 of 3 is the assistant's, where the user's belongs"),
        ({"messages": turns("system", "user", "user", "assistant")}, "messages: turn 3 of 4 is the user's, where the assistant's belongs"),
        ({"messages": turns("system")}, "messages: has no turn of the user's, where the assistant's belongs"),
        ({"texts": [{"user": "<image> x", "assistant": "y"}]}, "texts: 1 <image> mark for 0 images"),
        ({"texts": [{"user": "x", "assistant": "y <image>"}]}, "<image> marks an image in the assistant's turn; images are shown by the user"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0]: content[0]: {'type': 'video'} is neither a text nor an image"),
        ({"texts": [{"user": "x", "assistant": "y"}], "images": ["a.png"] * 5}, "images: 5 images are more than 4"),
        ({"texts": [{"user": "x", "assistant": "y"}], "image": "none.png"}, "image: no image at"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_with_field_value_and_remedy(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": ASKED, "completion": SAID}, row])
    with pytest.raises(DataError) as raised:
        read(path)
    assert "conversations: 1 of 2 rows cannot be used" in str(raised.value)
    assert f"{path}:2: " in str(raised.value) and words in str(raised.value), str(raised.value)
    left = read(path, bad_rows="leave_out")
    assert [row.turns for row in left.train] == [TURNS] and words in left.skipped[0] and words in left.notes[0]


def many(folder: Path, count: int = 10, **fields: Any) -> GivenTexts[Conversation]:
    return read(
        write_jsonl(folder / "a.jsonl", [{"prompt": f"{n}?", "completion": "x"} for n in range(count)]), **fields
    )


def test_rows_that_are_held_out_or_left_out_are_not_trained_on(tmp_path: Path) -> None:
    given = many(tmp_path, hold_out=0.2)
    assert [row.turns[0].text for row in given.held_out] == ["5?", "6?"] and len(given.train) == 8
    kept = given.without({given.train[0].id})
    assert len(kept.train) == 7 and given.train[0] not in kept.train and kept.fingerprint() != given.fingerprint()
    with pytest.raises(DataError, match="all of its 8 rows are held out, too, so nothing is left to train on"):
        given.without({row.id for row in given.train})


def test_a_moved_file_is_the_same_file(tmp_path: Path) -> None:
    """A run may go on elsewhere: what counts are the texts and the images, not where they lie."""
    rows = [
        {"texts": [{"user": "a", "assistant": "b"}], "image": {"bytes": png((c, 0, 0)), "path": None}} for c in (1, 2)
    ]
    one, two = (read(write_parquet(tmp_path / name / "a.parquet", rows)) for name in ("here", "there"))
    assert one.train[0].images != two.train[0].images and one.fingerprint() == two.fingerprint()
    other = read(write_parquet(tmp_path / "there" / "b.parquet", rows[::-1]))
    assert other.fingerprint() != one.fingerprint()
