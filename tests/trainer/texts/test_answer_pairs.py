"""Pairs of answers by every name of their columns, as texts and as messages, and each wrong row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.text_rows import png, text_file, write_jsonl, write_parquet
from trainer.data.answers import answer_prompts, read_answers
from trainer.data.given_texts import GivenTexts
from trainer.data.prompts import DataError
from trainer.types import AnswerPair

ASKED, GOOD, BAD = "Why cake?", "To celebrate.", "I don't know."


def said(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def read(path: Path, **fields: Any) -> GivenTexts[AnswerPair]:
    return read_answers(text_file(path, **fields), field="preferences", dataset="preferences", max_images=4)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
        {"prompt": ASKED, "chosen_answer": GOOD, "rejected_answer": BAD},
        {"prompt": ASKED, "winner_answer": GOOD, "loser_answer": BAD},
        {"question": ASKED, "chosen": GOOD, "loser_answer": BAD, "origin": "made"},
        {"prompt": ASKED, "chosen": None, "winner_answer": GOOD, "rejected": BAD},
        {"prompt": [said(ASKED, "user")], "chosen": [said(GOOD)], "rejected": [said(BAD)]},
        {"prompt": ASKED, "chosen": [{"from": "gpt", "value": GOOD}], "rejected": [{"from": "gpt", "value": BAD}]},
        {"chosen": [said(ASKED, "user"), said(GOOD)], "rejected": [said(ASKED, "user"), said(BAD)]},
    ],
)
def test_every_name_and_shape_says_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    (pair,) = read(path).train
    assert (pair.prompt.text, pair.chosen, pair.rejected) == (ASKED, GOOD, BAD)
    assert (pair.prompt.id, pair.prompt.dataset) == (f"{path}:1", "preferences")
    assert answer_prompts(read(path)) == [pair.prompt]


def test_images_belong_to_the_prompt(tmp_path: Path) -> None:
    image = {"bytes": png((1, 2, 3)), "path": None}
    rows = [{"images": [image], "prompt": ASKED, "chosen": GOOD, "rejected": BAD}]
    (pair,) = read(write_parquet(tmp_path / "a.parquet", rows)).train
    assert [Path(path).read_bytes() for path in pair.prompt.source_images] == [image["bytes"]]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": ASKED, "rejected": BAD}, "chosen: missing; the row has prompt, rejected, and one must be chosen, chosen_answer, winner_answer"),
        ({"prompt": ASKED, "chosen": GOOD}, "rejected: missing; the row has prompt, chosen, and one must be rejected, rejected_answer, loser_answer"),
        ({"chosen": GOOD, "rejected": BAD}, "prompt: missing"),
        ({"prompt": ASKED, "chosen": GOOD, "winner_answer": GOOD, "rejected": BAD}, "chosen and winner_answer could both be the chosen answer"),
        ({"prompt": ASKED, "chosen": "", "rejected": BAD}, "chosen: the text is empty"),
        ({"prompt": ASKED, "chosen": 4, "rejected": BAD}, "chosen: 4 is a int, not a text"),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": GOOD}, "chosen and rejected are both 'To celebrate.', so neither is preferred"),
        ({"prompt": "<image> x", "chosen": GOOD, "rejected": BAD}, "prompt: 1 <image> mark for 0 images"),
        ({"prompt": ASKED, "chosen": "<image>", "rejected": BAD}, "<image> marks an image in an answer"),
        ({"prompt": ASKED, "chosen": [said(GOOD, "user")], "rejected": BAD}, "chosen: ends with the user's turn, where the assistant's belongs"),
        ({"chosen": [said("a", "user"), said(GOOD)], "rejected": [said("b", "user"), said(BAD)]}, "chosen and rejected answer different prompts ('a', 'b')"),
        ({"chosen": [said("s", "system"), said("a", "user"), said(GOOD)], "rejected": [said("s", "system"), said("a", "user"), said(BAD)]}, "2 turns (system, user) stand before the answer, where one of the user's belongs; a system turn for all is policy.system_prompt"),
        ({"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "images": ["a.png"] * 5}, "images: 5 images are more than 4"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_with_field_value_and_remedy(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": ASKED, "chosen": GOOD, "rejected": BAD}, row])
    with pytest.raises(DataError) as raised:
        read(path)
    assert "preferences: 1 of 2 rows cannot be used" in str(raised.value)
    assert f"{path}:2: " in str(raised.value) and words in str(raised.value), str(raised.value)
    left = read(path, bad_rows="leave_out")
    assert [pair.chosen for pair in left.train] == [GOOD] and words in left.skipped[0]
