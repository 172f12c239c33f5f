"""A user's preprocessing file: which functions run, on rows or in batches, what is shown of them, and their mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.text_rows import png, text_file, write_jsonl, write_parquet
from trainer.data.conversations import read_conversations
from trainer.data.prompts import DataError
from trainer.data.questions import read_questions
from trainer.data.rows.table import Table, open_table

ROWS = [{"problem": f"how many are {n}?", "solution": f"it is {n}", "n": n} for n in range(5)]


def table_of(folder: Path, code: str, rows: list[dict[str, Any]] = ROWS, **fields: Any) -> Table:
    (folder / "pre.py").write_text(code)
    path = write_jsonl(folder / "a.jsonl", rows)
    return open_table(text_file(path, preprocessing=str(folder / "pre.py"), **fields), field="data", path=str(path))


def rows_of(table: Table) -> list[dict[str, Any]]:
    return [row for _, row in table.read() if isinstance(row, dict)]


def test_every_function_of_the_file_runs_in_its_order_and_no_imported_one(tmp_path: Path) -> None:
    code = """
from textwrap import dedent
import json

class Helper:
    def method(self): ...

def z_first(row):
    return {"prompt": _shout(row["problem"]), "solution": None}

def _shout(text):
    return text.upper()

def a_second(row):
    row["prompt"] += "!"
    return row
"""
    table = table_of(tmp_path, code)
    assert table.preprocessing is not None and [step.name for step in table.preprocessing.steps] == [
        "z_first",
        "a_second",
    ]
    assert rows_of(table)[1] == {"problem": "how many are 1?", "solution": None, "n": 1, "prompt": "HOW MANY ARE 1?!"}


def test_a_batch_function_gets_columns_as_lists(tmp_path: Path) -> None:
    code = """
def batch_ask(rows):
    assert isinstance(rows["problem"], list) and len(rows["n"]) == 5 or len(rows["n"]) == 3 or len(rows["n"]) == 1
    return {"prompt": [f"{p} {s}" for p, s in zip(rows["problem"], rows["solution"])]}
"""
    assert [row["prompt"] for row in rows_of(table_of(tmp_path, code))] == [
        f"how many are {n}? it is {n}" for n in range(5)
    ]


LAB = """
def convert_to_rgb(example):
    image = example["image"]
    if image.mode != "RGB":
        image = image.convert("RGB")
    example["image"] = image
    return example

def convert_fn(batch):
    texts = []
    for question, answer in zip(batch["problem"], batch["solution"]):
        {append}
    return {{"texts": texts}}
"""
FOR_SFT = LAB.format(append='texts.append({"user": "Think. " + question, "assistant": "Answer: " + answer})')
FOR_GRPO = (
    LAB.format(append='texts.append([{"user": "Think. " + question, "assistant": "Answer: " + answer}])')
    + """
def extract_prompt(example):
    if example.get("texts") and len(example["texts"]) > 0:
        item = example["texts"][0]
        if isinstance(item, list) and len(item) > 0:
            return {"prompt": item[0].get("user", "")}
    return {"prompt": ""}
"""
)


def lab_folder(folder: Path, code: str) -> Path:
    (folder / "pre.py").write_text(code)
    rows = [{**row, "image": {"bytes": png((40 * row["n"], 0, 0)), "path": None}} for row in ROWS]
    return write_parquet(folder / "train-00000-of-00001.parquet", rows)


def test_functions_for_batches_that_are_not_called_so_do_not_zip_letters(tmp_path: Path) -> None:
    """NanoVLM-Lab's own files are run on rows by its command and teach questions of one letter ("H" -> "Answer: <")."""
    path = lab_folder(tmp_path, FOR_SFT)
    section = text_file(path, preprocessing=str(tmp_path / "pre.py"))
    read = read_conversations(section, field="conversations", max_images=4)
    assert [turn.text for turn in read.train[3].turns] == ["Think. how many are 3?", "Answer: it is 3"]
    assert len(read.train[3].images) == 1
    (note,) = read.notes
    assert (
        "convert_fn (goes through a text letter by letter, so it was written for batches: it gets lists of one row)"
        in note
    )

    path = lab_folder(tmp_path, FOR_GRPO)
    section = text_file(path, preprocessing=str(tmp_path / "pre.py"))
    asked = read_questions(section, path=str(path), field="data.train.0", dataset="d", max_images=4).train.prompts
    assert [prompt.text for prompt in asked] == [f"Think. how many are {n}?" for n in range(5)]
    assert [prompt.targets for prompt in asked][2] == ("it is 2",) and len({p.source_images for p in asked}) == 5


def test_answers_of_one_letter_are_no_lists_of_one(tmp_path: Path) -> None:
    """Where every answer is a letter, zipping ends after one entry, which is not taken for a batch of one row."""
    rows = [{"problem": f"which is {n}?", "solution": letter} for n, letter in enumerate("ABC")]
    zips = """
def convert_fn(batch):
    return {"prompt": [question + " " + answer for question, answer in zip(batch["problem"], batch["solution"])]}
"""
    assert [row["prompt"] for row in rows_of(table_of(tmp_path, zips, rows))] == [
        "which is 0? A",
        "which is 1? B",
        "which is 2? C",
    ]
    own = """
def clean(row):
    return {"texts": [{"user": row["problem"], "assistant": "".join(c for c in row["solution"])}]}
"""
    assert rows_of(table_of(tmp_path, own, rows))[2]["texts"] == [{"user": "which is 2?", "assistant": "C"}]


def test_a_function_may_go_through_letters_for_itself(tmp_path: Path) -> None:
    code = """
def clean(row):
    return {"prompt": "".join(c for c in row["problem"] if c.isalpha()), "words": [w for w in row["problem"].split()]}
"""
    assert rows_of(table_of(tmp_path, code))[0]["prompt"] == "howmanyare"


def test_what_it_makes_of_the_first_row_is_shown_with_the_hash_of_the_file(tmp_path: Path) -> None:
    table = table_of(tmp_path, 'def ask(row):\n    return {"prompt": row["problem"] + " Think."}\n')
    (note,) = table.notes
    assert table.preprocessing is not None and len(table.preprocessing.sha256) == 64
    for words in (
        f"data.preprocessing = {tmp_path / 'pre.py'} (sha256 {table.preprocessing.sha256}) runs ask.",
        f"Of the first row, {tmp_path / 'a.jsonl'}:1, it makes: prompt = 'how many are 0? Think.'",
    ):
        assert words in note
    assert "sha" not in str(
        open_table(text_file(tmp_path / "a.jsonl"), field="d", path=str(tmp_path / "a.jsonl")).notes
    )


def test_the_pages_file_does_what_the_page_says(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    code = page.partition("```python\n# my_rows.py\n")[2].partition("```")[0]
    (tmp_path / "my_rows.py").write_text(code)
    path = lab_folder(tmp_path, "")
    section = text_file(path, preprocessing=str(tmp_path / "my_rows.py"))
    asked = read_questions(section, path=str(path), field="data.train.0", dataset="d", max_images=4).train.prompts
    assert asked[1].text == "how many are 1? Answer in <answer></answer>." and len(asked[1].source_images) == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(row:\n", "cannot be run: SyntaxError"),
        ("import no_such_module_here\n", "cannot be run: ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("x = 1\n", "defines no function that could change a row"),
        (
            "def f(row):\n    return row['question']\n",
            "a.jsonl:1: f of {pre} (line 2) raised KeyError: 'question'; the row has the columns problem, solution, n",
        ),
        (
            "def f(row):\n    return 7\n",
            "a.jsonl:1: f of {pre} gives a int (7), not a dict of columns; a helper's name begins with an underscore",
        ),
        (
            "def batch_f(rows):\n    return {'prompt': ['x']}\n",
            "batch_f of {pre} gives 1 entries for the column prompt, but 3 rows went in",
        ),
        (
            "def batch_f(rows):\n    return {'prompt': 'xyz'}\n",
            "batch_f of {pre} gives 3 entries for the column prompt, but 3 rows went in",
        ),
    ],
)
def test_a_mistake_is_named_with_function_row_and_line(tmp_path: Path, code: str, words: str) -> None:
    with pytest.raises(DataError) as raised:
        table_of(tmp_path, code)
    assert words.format(pre=tmp_path / "pre.py") in str(raised.value)


def test_a_mistake_in_a_later_row_stops_the_start_too(tmp_path: Path) -> None:
    table = table_of(tmp_path, "def f(row):\n    return {'half': 1 / (4 - row['n'])}\n", bad_rows="leave_out")
    with pytest.raises(DataError, match=r"a\.jsonl:5: f of .* \(line 2\) raised ZeroDivisionError"):
        rows_of(table)


def test_a_file_that_is_not_there_is_an_error_and_not_a_warning(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "pre.py").write_text("def f(row): ...")
    with pytest.raises(DataError, match=r"preprocessing = .*prep\.py: no file at .*; did you mean .*pre\.py"):
        open_table(text_file(path, preprocessing=str(tmp_path / "prep.py")), field="d", path=str(path))
