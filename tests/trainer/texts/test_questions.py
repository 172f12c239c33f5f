"""Prompts of a policy that writes: text, images, answers, columns; each row that is wrong; held-out rows; the same again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.text_rows import png, text_file, write_jsonl, write_parquet
from trainer.data.prompts import DataError
from trainer.data.questions import QuestionFile, question_text, read_questions, right_answers
from trainer.types import Prompt

RED, BLUE = png((255, 0, 0)), png((0, 0, 255))


def read(
    path: Path, *, max_images: int = 4, hold_out: float | None = None, column: str | None = None, **fields: Any
) -> QuestionFile:
    return read_questions(
        text_file(path, **fields),
        path=str(path),
        field="data.train.0",
        dataset="cards",
        weights={"accuracy": 1.0},
        max_images=max_images,
        hold_out=hold_out,
        prompt_column=column,
    )


def one(folder: Path, row: dict[str, Any], **fields: Any) -> Prompt:
    (prompt,) = read(write_jsonl(folder / "a.jsonl", [row]), **fields).train.prompts
    return prompt


def test_a_row_is_a_prompt_with_images_answers_and_columns(tmp_path: Path) -> None:
    row = {
        "prompt": "<image> or <image>?",
        "images": [{"bytes": RED, "path": None}, {"bytes": BLUE, "path": "b.png"}],
        "answer": "B",
        "difficulty": 3,
        "negative_prompt": "kept as a column",
        "metadata": {"kind": "colour"},
    }
    (prompt,) = read(write_parquet(tmp_path / "a.parquet", [row])).train.prompts
    assert (prompt.text, prompt.dataset, prompt.weights) == ("<image> or <image>?", "cards", {"accuracy": 1.0})
    assert [Path(image).read_bytes() for image in prompt.source_images] == [RED, BLUE]
    assert prompt.targets == ("B",)
    assert prompt.metadata == {
        "answer": "B",
        "difficulty": 3,
        "negative_prompt": "kept as a column",
        "kind": "colour",
    }


@pytest.mark.parametrize(
    ("columns", "targets"),
    [
        ({"answer": "B"}, ("B",)),
        ({"answer": 42}, ("42",)),
        ({"answer": 42.0}, ("42",)),
        ({"answer": 0.5, "solution": "no"}, ("0.5",)),
        ({"answer": ["one", 1]}, ("one", "1")),
        ({"solution": "B"}, ("B",)),
        ({"answer": None, "solution": "B"}, ("B",)),
        ({"answer": True}, None),
        ({"answer": {"letter": "B"}, "solution": "B"}, ("B",)),
        ({"answer": []}, None),
        ({"answer": " "}, None),
        ({"solution": "x" * 5000}, None),
        ({}, None),
    ],
)
def test_an_answer_makes_targets_where_it_is_a_text_or_a_number(columns: dict[str, Any], targets: Any) -> None:
    assert right_answers("a:1", columns) == targets


def test_targets_of_the_row_come_before_its_answer_and_other_names_of_it_are_renamed(tmp_path: Path) -> None:
    assert one(tmp_path, {"prompt": "x", "targets": ["A", "a"], "answer": "B"}).targets == ("A", "a")
    for old in ("original_answer", "expected_answer"):
        prompt = one(tmp_path, {"prompt": "x", old: "B"})
        assert prompt.targets == ("B",) and prompt.metadata == {"answer": "B"}
    kept = one(tmp_path, {"prompt": "x", "answer": "A", "expected_answer": "B"})
    assert kept.targets == ("A",) and kept.metadata == {"answer": "A", "expected_answer": "B"}


def test_the_text_is_prompt_or_a_name_that_others_give_it(tmp_path: Path) -> None:
    for name in ("prompt", "question", "problem", "query", "instruction"):
        assert one(tmp_path, {name: "how many?"}).text == "how many?"
    both = one(tmp_path, {"problem": "2 + 2?", "prompt": "Think. 2 + 2?"})
    assert both.text == "Think. 2 + 2?" and both.metadata == {"problem": "2 + 2?"}
    assert one(tmp_path, {"frage": "wie viele?"}, column="frage").text == "wie viele?"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{"role": "user", "content": "how many?"}], "how many?"),
        ('[{"role": "user", "content": "how many?"}]', "how many?"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many?"}]}], "how many?"),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "is "},
                        {"type": "image", "text": None},
                        {"type": "text", "text": " red?"},
                    ],
                }
            ],
            "is <image> red?",
        ),
        (["how many?"], "how many?"),
        ("[1] how many?", "[1] how many?"),
    ],
)
def test_a_prompt_may_be_a_message(value: Any, text: str) -> None:
    assert question_text("a:1: prompt", value) == text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "x"}, "prompt: missing; the row has text, and one must be prompt, question, problem, query, instruction"),
        ({"prompt": "  "}, "prompt: the text is empty"),
        ({"prompt": 7}, "prompt: 7 is a int, not a text"),
        ({"prompt": ["a", "b"]}, "prompt: ['a', 'b'] is a list, not a text"),
        ({"prompt": "a\x00b"}, "prompt: the character U+0000"),
        ({"prompt": "<image> x"}, "prompt: 1 <image> mark for 0 images"),
        ({"prompt": "x", "image": "none.png"}, "image: no image at"),
        ({"prompt": "x", "metadata": 3}, "metadata: 3 is not an object"),
        ({"prompt": "x", "answer": "A", "metadata": {"answer": "B"}}, "answer is a column and also in metadata"),
        ({"prompt": "x", "targets": "A"}, "targets: 'A' is not a list of texts"),
        ({"prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "x"}]}, "a system turn, which a prompt does not have; leave it out, and say it for all prompts by policy.system_prompt"),
        ({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}, "3 turns (user, assistant, user), where one of the user's belongs"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, "prompt[0]: role 'tool' is not among system, user, human"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_with_field_value_and_remedy(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "right"}, row])
    with pytest.raises(DataError) as raised:
        read(path)
    assert "data.train.0: 1 of 2 rows cannot be used" in str(raised.value)
    assert f"{path}:2: " in str(raised.value) and words in str(raised.value), str(raised.value)
    left = read(path, bad_rows="leave_out")
    assert [prompt.text for prompt in left.train.prompts] == ["right"] and len(left.train.skipped) == 1
    assert "data.train.0: 1 of 2 rows are left out: " in left.notes[0] and words in left.notes[0]


def test_a_table_cell_that_json_does_not_have_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"prompt": "x", "mask": b"\x00"}])
    with pytest.raises(DataError, match=r"a\.parquet:1\.mask: b'\\x00' is a bytes, which JSON does not have"):
        read(path)


def test_more_images_than_the_policy_takes_are_refused_with_both_numbers(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"prompt": "x", "image": [{"bytes": RED, "path": None}] * 5}])
    with pytest.raises(DataError, match=r"a\.parquet:1: image: 5 images are more than 4; .* raise policy\.max_images"):
        read(path)
    assert len(read(path, max_images=8).train.prompts[0].source_images) == 5


def test_the_same_question_about_another_image_is_another_prompt(tmp_path: Path) -> None:
    rows = [
        {"prompt": "what is it?", "image": {"bytes": data, "path": None}, "answer": "B"} for data in (RED, BLUE, RED)
    ]
    found = read(write_parquet(tmp_path / "a.parquet", rows))
    assert len(found.train.prompts) == 2 and found.train.repeated == 1
    assert (
        f"1 rows come again and are drawn once an epoch, such as: {tmp_path / 'a.parquet'}:3 says what"
        in found.notes[0]
    )


def test_an_id_does_not_depend_on_where_images_lie_or_in_which_order_rows_come(tmp_path: Path) -> None:
    rows = [{"prompt": f"what is {n}?", "image": {"bytes": RED, "path": None}} for n in range(3)]
    first = read(write_parquet(tmp_path / "a.parquet", rows)).train.prompts
    again = read(
        write_parquet(tmp_path / "b.parquet", rows[::-1]), image_cache=str(tmp_path / "elsewhere")
    ).train.prompts
    assert [prompt.id for prompt in first] == [prompt.id for prompt in again][::-1]
    assert first[0].source_images != again[-1].source_images


def test_held_out_rows_are_not_trained_on(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"what is {n}?"} for n in range(10)])
    found = read(path, hold_out=0.2)
    assert [prompt.text for prompt in found.held_out] == ["what is 5?", "what is 6?"]
    assert len(found.train.prompts) == 8 and found.train.lines[5] == 8
