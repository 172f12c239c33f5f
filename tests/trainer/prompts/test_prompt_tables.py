"""Prompt files as they are published: tables of every delimiter, JSON lists, folders; and options where names are others."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from trainer.config import Config
from trainer.data.datasets import load_train_prompts
from trainer.data.fingerprints import fingerprint
from trainer.data.prompts import DataError, PromptFile, read_prompt_file
from trainer.data.prompts.lines import Split
from trainer.evaluation.sets import load_sets
from trainer.types import Prompt

# As google-research/parti publishes them: a name in capitals, tabs, quotes as characters, numbers that are prompts.
PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n0\tAbstract\tBasic\t\n"
    'The words "Fly an airplane", on a wall\tOutdoor Scenes\tComplex\t\n"bonez" on a chalkboard\tAnimals\tComplex\tsays "b\n'
    '"a quoted ""field"", whole"\tArts\tBasic\t\n'
)
PARTI_TEXTS = ["0", 'The words "Fly an airplane", on a wall', '"bonez" on a chalkboard', 'a quoted "field", whole']


def read(folder: Path, name: str, content: str, split: Split = "train", **options: Any) -> PromptFile:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return read_prompt_file(path, dataset="set", split=split, **options)


def texts(file: PromptFile) -> list[str]:
    return [prompt.text for prompt in file.prompts]


@pytest.mark.parametrize("name", ["PartiPrompts.tsv", "parti.csv", "parti.txt"])
def test_partiprompts_under_any_name(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        file = read(tmp_path, name, PARTI.replace("\n", "\r\n"))
    assert texts(file) == PARTI_TEXTS
    assert file.prompts[2].metadata == {"Category": "Animals", "Challenge": "Complex", "Note": 'says "b'}
    assert file.lines == (2, 3, 4, 5)
    assert ("is a table, its columns set apart by tabs" in caplog.text) == name.endswith(".txt")


def test_a_table_called_txt_can_be_taken_line_by_line(tmp_path: Path) -> None:
    assert len(texts(read(tmp_path, "a.txt", PARTI, format="txt"))) == 5


def test_tabs_without_a_known_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its lines have 1 tabs each.*`prompt_column`.*`format: txt`"):
        read(tmp_path, "a.txt", "a cat\tanimals\na dog\tanimals\n")
    file = read(tmp_path, "a.txt", "What\tKind\na dog\tanimals\n", prompt_column="What")
    assert texts(file) == ["a dog"] and file.prompts[0].metadata == {"Kind": "animals"}


def test_a_tab_here_and_there_is_part_of_a_prompt(tmp_path: Path) -> None:
    assert texts(read(tmp_path, "a.txt", "a cat\tin a hat\na dog\n")) == ["a cat\tin a hat", "a dog"]


@pytest.mark.parametrize(
    "content",
    ['{"prompt": "a cat"}\n', '["a cat", "a dog"]', '[\n "a cat",\n "a dog"\n]\n', '{\n "prompts": ["a cat"]\n}\n'],
)
def test_json_called_txt_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"it holds JSON, not a prompt a line; say `format: json`, or `format: rows`"):
        read(tmp_path, "a.txt", content)
    assert texts(read(tmp_path, "b.txt", "{a cat} in braces\n[a dog]\n")) == ["{a cat} in braces", "[a dog]"]


@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_a_table_of_another_delimiter_called_txt(
    tmp_path: Path, delimiter: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = read(tmp_path, "a.txt", f"id{delimiter}Prompt\n1{delimiter}a cat\n2{delimiter}a dog\n")
    assert texts(file) == ["a cat", "a dog"] and "a.txt is a table" in caplog.text
    lines = [f"prompt{delimiter} a cat", "a dog"]
    assert texts(read(tmp_path, "b.txt", "\n".join(lines))) == lines


def test_a_quote_that_nothing_closes_is_not_one_long_prompt(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv: not CSV \(a field of the row that begins on line 3 opens a quote"):
        read(tmp_path, "a.csv", 'prompt,n\na cat,1\n"a dog,2\na cow,3\n')
    closed = read(tmp_path, "b.csv", 'prompt,n\n"a\ncat",1\n"say ""hi""",2\n')
    assert texts(closed) == ["a\ncat", 'say "hi"']


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ("Prompt", "Prompt"),
        ("PROMPT", "PROMPT"),
        ("text", "text"),
        ("Caption", "Caption"),
        ("Prompts", "Prompts"),
        ("instruction", "instruction"),
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_columns_by_their_known_names_between_any_delimiter(
    tmp_path: Path, header: str, column: str, delimiter: str
) -> None:
    file = read(tmp_path, "a.csv", f'id{delimiter}{header}\n1{delimiter}"a cat, a dog; a ""cow"""\n')
    assert [(p.text, p.metadata) for p in file.prompts] == [('a cat, a dog; a "cow"', {"id": "1"})]


def test_prompt_comes_before_text_and_two_of_a_kind_are_refused(tmp_path: Path) -> None:
    file = read(tmp_path, "a.csv", "text,prompt\nx,a cat\n")
    assert texts(file) == ["a cat"] and file.prompts[0].metadata == {"text": "x"}
    with pytest.raises(DataError, match="text and instruction could both be the prompts; name one by `prompt_column`"):
        read(tmp_path, "b.csv", "text,instruction\nx,y\n")
    assert texts(read(tmp_path, "b.csv", "text,instruction\nx,y\n", prompt_column="instruction")) == ["y"]


def test_a_named_column_or_delimiter_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prompt_column = words, but the columns are id, prompt"):
        read(tmp_path, "a.csv", "id,prompt\n1,a\n", prompt_column="words")
    assert texts(read(tmp_path, "b.csv", "id;Die Worte\n1;eins, zwei\n", prompt_column="Die Worte")) == ["eins, zwei"]
    assert texts(read(tmp_path, "c.csv", "id#prompt\n1#a\n", delimiter="#")) == ["a"]
    assert texts(read(tmp_path, "d.csv", "id\tprompt\n1\ta\n", delimiter="tab")) == ["a"]
    with pytest.raises(DataError, match="`delimiter` is for tables, and this is jsonl"):
        read(tmp_path, "a.jsonl", '{"prompt": "a"}\n', delimiter=";")
    with pytest.raises(DataError, match="`prompt_column` = a, but flow_grpo_text has a prompt a line"):
        read(tmp_path, "train.txt", "a\n", format="flow_grpo_text", prompt_column="a")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (["a cat", "a dog"], [("a cat", {}), ("a dog", {})]),
        ([{"prompt": "a cat", "n": 1}, {"prompt": "a dog"}], [("a cat", {"n": 1}), ("a dog", {})]),
        ([{"Prompt": "a cat"}, {"text": "a dog"}], [("a cat", {}), ("a dog", {})]),
        ({"prompts": ["a cat", "a dog"]}, [("a cat", {}), ("a dog", {})]),
        ({"info": "v1", "data": [{"caption": "a cat"}]}, [("a cat", {})]),
        ({"00": {"prompt": "a cat"}, "01": {"prompt": "a dog"}}, [("a cat", {}), ("a dog", {})]),
        ({"00": "a cat", "01": "a dog"}, [("a cat", {}), ("a dog", {})]),
        ({"prompt": "a cat", "n": 1}, [("a cat", {"n": 1})]),
    ],
)
def test_json_lists(tmp_path: Path, content: Any, expected: list[Any]) -> None:
    file = read(tmp_path, "a.json", json.dumps(content, indent=1))
    assert [(p.text, p.metadata) for p in file.prompts] == expected


@pytest.mark.parametrize(
    ("content", "train", "test"),
    [
        ({"train": ["a", "b"], "test": ["c"]}, ["a", "b"], ["c"]),
        ({"Train": [{"prompt": "a"}], "validation": [{"prompt": "c"}], "license": "MIT"}, ["a"], ["c"]),
        ({"val": ["d"], "test": ["c"], "train": {"one": "a", "two": "b"}}, ["a", "b"], ["c"]),
        ({"train": ["a"], "tags": ["x", "y"]}, ["a"], ["a"]),
        ({"train": ["a"]}, ["a"], ["a"]),
        ({"train": "a train on rails", "cat": "a cat"}, ["a train on rails", "a cat"], ["a train on rails", "a cat"]),
    ],
)
def test_json_with_a_list_for_each_split(tmp_path: Path, content: Any, train: list[str], test: list[str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    for split, expected in (("train", train), ("test", test)):
        assert texts(read_prompt_file(tmp_path / "a.json", dataset="s", split=split)) == expected  # type: ignore[arg-type]


def test_json_without_the_split_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"test": ["a"], "val": ["b"]}))
    with pytest.raises(DataError, match=r"a\.json: holds prompts for test, val, and none for train"):
        read_prompt_file(tmp_path / "a.json", dataset="s")


def test_an_image_folder_gives_its_texts_and_keeps_its_pictures_apart(tmp_path: Path) -> None:
    """Hugging Face's: the picture is what the text describes, not what an edit starts from."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/0.png").write_bytes(b"not looked at")
    (tmp_path / "plain/metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat", "n": 3}\n')
    for split in ("train", "test"):
        (prompt,) = read_prompt_file(tmp_path / "plain", dataset="s", split=split).prompts  # type: ignore[arg-type]
        assert (prompt.text, prompt.source_images) == ("a cat", ())
        assert prompt.metadata == {"file_name": "0.png", "n": 3}
    for name, text in (("train", "a"), ("validation", "b")):
        (tmp_path / "splits" / name).mkdir(parents=True)
        (tmp_path / "splits" / name / "metadata.csv").write_text(f"file_name,text\n0.png,{text}\n")
    assert texts(read_prompt_file(tmp_path / "splits", dataset="s")) == ["a"]
    assert texts(read_prompt_file(tmp_path / "splits", dataset="s", split="test")) == ["b"]
    (tmp_path / "splits/validation/metadata.csv").unlink()
    with pytest.raises(DataError, match="this one has but the prompts of train"):
        read_prompt_file(tmp_path / "splits", dataset="s", split="test")


def test_json_that_is_none_is_refused(tmp_path: Path) -> None:
    assert texts(read(tmp_path, "a.json", '{"prompt": "a"}\n{"prompt": "b"}\n')) == ["a", "b"], "an object a line"
    for content, words in (("[1, 2]", "holds no list of prompts"), ("{", "not JSON"), ('{"a": 1}', "holds no list")):
        with pytest.raises(DataError, match=words):
            read(tmp_path, "b.json", content)
    with pytest.raises(DataError, match=r"c\.json:2: prompt: missing"):
        read(tmp_path, "c.json", '[{"prompt": "a"}, {"n": 1}]')


def test_rows_by_another_name(tmp_path: Path) -> None:
    assert texts(read(tmp_path, "a.jsonl", '{"text": "a cat"}\n')) == ["a cat"]
    file = read(tmp_path, "b.jsonl", '{"prompt": "short", "long": "a long one"}\n', prompt_column="long")
    assert texts(file) == ["a long one"] and file.prompts[0].metadata == {"prompt": "short"}
    with pytest.raises(
        DataError, match=r"b\.jsonl:1: prompt_column = wide: the row has no such field, but prompt, long"
    ):
        read(tmp_path, "b.jsonl", '{"prompt": "short", "long": "x"}\n', prompt_column="wide")


def test_prompts_as_chat_messages(tmp_path: Path) -> None:
    """verl's tables hold them so."""
    user = {"role": "user", "content": "a cat"}
    row = {"prompt": [user], "negative_prompt": [{"role": "user", "content": " "}], "data_source": "ocr"}
    (prompt,) = read(tmp_path, "a.jsonl", json.dumps(row), format="rows").prompts
    assert (prompt.text, prompt.negative_prompt, prompt.metadata) == ("a cat", None, {"data_source": "ocr"})
    row["prompt"] = [{"role": "user", "content": [{"type": "text", "text": "a dog"}]}]
    assert texts(read(tmp_path, "c.jsonl", json.dumps(row), format="rows")) == ["a dog"]
    row["prompt"] = [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "x"}]}]
    with pytest.raises(DataError, match="is a list, not a text"):
        read(tmp_path, "d.jsonl", json.dumps(row), format="rows")
    with pytest.raises(DataError, match="is a list, not a text"):
        read(tmp_path, "b.jsonl", json.dumps({"prompt": [{"role": "system", "content": "x"}, user]}), format="rows")


def test_a_folder_of_text_files(tmp_path: Path) -> None:
    for name, text in (("b.txt", "a dog\n"), ("a.txt", "a cat\n\na cow\n"), ("notes.md", "no prompt")):
        (tmp_path / name).write_text(text)
    file = read_prompt_file(tmp_path, dataset="set")
    assert texts(file) == ["a cat", "a cow", "a dog"] and file.lines == (1, 3, 1)
    (tmp_path / "c.txt").write_text("bad \x00\n")
    with pytest.raises(DataError, match=r"c\.txt:1: prompt: the character"):
        read_prompt_file(tmp_path, dataset="set")


def test_text_files_of_splits(tmp_path: Path) -> None:
    for name in ("color_train", "shape_train", "color_val"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    assert texts(read_prompt_file(tmp_path, dataset="set")) == ["color_train", "shape_train"]
    assert texts(read_prompt_file(tmp_path, dataset="set", split="test")) == ["color_val"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_a_folder_with_a_file_per_split(tmp_path: Path, suffix: str) -> None:
    content = {
        ".jsonl": '{{"prompt": "{0}"}}\n',
        ".json": '["{0}"]',
        ".csv": "Prompt\n{0}\n",
        ".tsv": "Prompt\tNote\n{0}\t\n",
    }[suffix]
    (tmp_path / f"train{suffix}").write_text(content.format("a cat"))
    with pytest.raises(DataError, match="this one has but the prompts of train: name a file as `path`"):
        read_prompt_file(tmp_path, dataset="set", split="test")
    (tmp_path / f"validation{suffix}").write_text(content.format("a dog"))
    assert texts(read_prompt_file(tmp_path, dataset="set")) == ["a cat"]
    assert texts(read_prompt_file(tmp_path, dataset="set", split="test")) == ["a dog"]


def test_a_folder_with_two_files_for_a_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "train.jsonl").write_text('{"prompt": "b"}\n')
    with pytest.raises(DataError, match=r"train\.txt and train\.jsonl; it holds both: .*give the file as `path`"):
        read_prompt_file(tmp_path, dataset="set")


def test_training_and_evaluation_take_the_options(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("Worte;n\neins;1\nzwei;2\n")
    (tmp_path / "held.csv").write_text("Worte;n\ndrei;3\n")
    how = {"prompt_column": "Worte", "delimiter": ";"}
    config = Config.model_validate(
        {
            "run_name": "run",
            "max_steps": 1,
            "rewards": {
                "services": {"rules": {"urls": ["http://127.0.0.1:9"]}},
                "columns": {"c": {"service": "rules"}},
            },
            "data": {"train": [{"path": str(tmp_path / "train.csv"), "rewards": {"c": 1.0}, **how}]},
            "evaluation": {"sets": [{"name": "held", "path": str(tmp_path / "held.csv"), **how}]},
        }
    )
    (train,) = load_train_prompts(config.data)
    (held,) = load_sets(config, train.prompts)
    assert [p.text for p in (*train.prompts, *held.prompts)] == ["eins", "zwei", "drei"]


def test_a_negative_prompt_is_part_of_what_a_prompt_says() -> None:
    plain, other = Prompt("a", "a cat"), Prompt("a", "a cat", negative_prompt="blurry")
    assert fingerprint([plain]) != fingerprint([other])
