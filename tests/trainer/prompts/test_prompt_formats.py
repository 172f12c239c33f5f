"""Prompt files of other trainers and benchmarks: what is read from each, and what is refused or left out by name."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from services.eval.prompts import read_prompts
from trainer.config.data import PromptFormat
from trainer.data.datasets import check_disjoint
from trainer.data.fingerprints import fingerprint
from trainer.data.prompts import MAX_SOURCE_IMAGES, DataError, PromptFile, read_prompt_file
from trainer.types import Prompt


def read(folder: Path, name: str, content: str, format: PromptFormat = "auto") -> PromptFile:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return read_prompt_file(path, dataset="set", format=format)


def texts(file: PromptFile) -> list[str]:
    return [prompt.text for prompt in file.prompts]


# Other trainers' jsonl


def test_rows_with_caption_are_anothers_and_everything_else_is_metadata(tmp_path: Path) -> None:
    file = read(
        tmp_path, "a.jsonl", '{"caption": "a cat", "id": 7, "targets": "none"}\n\n{"prompt": "a dog", "caption": "x"}\n'
    )
    assert texts(file) == ["a cat", "a dog"]
    assert [prompt.metadata for prompt in file.prompts] == [{"id": 7, "targets": "none"}, {}]
    assert file.lines == (1, 3)


def test_dpg_benchs_rows_are_known_by_their_key(tmp_path: Path) -> None:
    file = read(
        tmp_path, "a.jsonl", '{"prompt": "eight cabbages", "key": "0"}\n{"prompt": "a red truck", "key": "10"}\n'
    )
    assert [(p.text, p.metadata) for p in file.prompts] == [
        ("eight cabbages", {"key": "0"}),
        ("a red truck", {"key": "10"}),
    ]


def test_a_misspelt_field_of_ours_is_no_metadata_unless_the_format_says_so(tmp_path: Path) -> None:
    row = '{"prompt": "a cat", "target": ["HI"]}\n'
    with pytest.raises(DataError, match=r"target: unknown field.*did you mean 'targets'"):
        read(tmp_path, "a.jsonl", row)
    with pytest.raises(DataError, match="`format: rows` reads other projects' files"):
        read(tmp_path, "a.jsonl", '{"prompt": "a cat", "aesthetic": 5}')
    assert read(tmp_path, "a.jsonl", row, "rows").prompts[0].metadata == {"target": ["HI"]}


def test_ids_of_rows_tell_metadata_apart_and_stay_when_lines_move(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ['{"prompt": "a", "caption": "", "n": 1}', '{"prompt": "a", "n": 2}', '{"prompt": "a", "n": 1}']
    with caplog.at_level(logging.WARNING):
        file = read(tmp_path, "a.jsonl", "\n".join(rows))
    assert [prompt.metadata for prompt in file.prompts] == [{"n": 1}, {"n": 2}]
    assert file.repeated == 1 and "a.jsonl:3: the prompt of line 1 again" in caplog.text
    moved = read(tmp_path, "a.jsonl", "\n".join(reversed(rows)), "rows")
    assert {p.id for p in moved.prompts} == {p.id for p in file.prompts}


def test_many_repetitions_are_counted_not_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, "a.txt", "a cat\n" * 50).repeated == 49
    assert len(caplog.records) == 4 and "46 more like the last one" in caplog.text


# flow_grpo's folders


def test_flow_grpos_text_folder_has_targets_from_straight_quotes(tmp_path: Path) -> None:
    read(tmp_path, "ocr/train.txt", 'A sign that says "OPEN" and "24h"\nno quote\nempty "" quote\n')
    read(tmp_path, "ocr/test.txt", 'A mug with "HI"\n')
    train = read_prompt_file(tmp_path / "ocr", dataset="ocr")
    assert [prompt.targets for prompt in train.prompts] == [("OPEN", "24h"), None, None]
    assert train.path == tmp_path / "ocr/train.txt"
    (test,) = read_prompt_file(tmp_path / "ocr", dataset="ocr", split="test").prompts
    assert test.targets == ("HI",)


GENEVAL = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [], "prompt": "two cats"}


def test_flow_grpos_metadata_folder_keeps_what_geneval_checks(tmp_path: Path) -> None:
    read(tmp_path, "geneval/train_metadata.jsonl", json.dumps(GENEVAL))
    (prompt,) = read_prompt_file(tmp_path / "geneval", dataset="geneval").prompts
    assert prompt.text == "two cats"
    assert prompt.metadata == {key: GENEVAL[key] for key in ("tag", "include", "exclude")}
    (alone,) = read_prompt_file(tmp_path / "geneval/train_metadata.jsonl", dataset="geneval").prompts
    assert alone == prompt, "the file is known by its shape, too"


def test_flow_grpos_edits_start_from_an_image_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "edit/images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "edit/images/0.png")
    row = '{"prompt": "make it night", "image": "images/0.png", "tag": "t"}'
    (tmp_path / "edit/train_metadata.jsonl").write_text(row)
    (prompt,) = read_prompt_file(tmp_path / "edit", dataset="edit").prompts
    assert prompt.source_images == (str(tmp_path / "edit/images/0.png"),)
    assert prompt.metadata == {"tag": "t"}


def test_a_folder_without_the_split_or_with_two_kinds_is_refused(tmp_path: Path) -> None:
    read(tmp_path, "ocr/train.txt", "a\n")
    with pytest.raises(
        DataError, match=r"is a folder, and a folder of prompts holds test\.txt or test_metadata\.jsonl"
    ):
        read_prompt_file(tmp_path / "ocr", dataset="ocr", split="test")
    read(tmp_path, "ocr/train_metadata.jsonl", json.dumps(GENEVAL))
    with pytest.raises(DataError, match="it holds both: choose one by `format`"):
        read_prompt_file(tmp_path / "ocr", dataset="ocr")
    assert texts(read_prompt_file(tmp_path / "ocr", dataset="ocr", format="flow_grpo_metadata")) == ["two cats"]


# Tables

DIMS = {"Testpoints": ["Style", "World Knowledge"], "Testpoint Description": ["ink painting", "pyramids"]}


def dims(tree: object) -> str:
    """A JSON object as a CSV field."""
    return '"' + json.dumps(tree, ensure_ascii=False).replace('"', '""') + '"'


@pytest.mark.parametrize("suffix", ["", "_en", "_zh"])
def test_unigenbench_rows_have_ids_by_index_and_the_judges_metadata(tmp_path: Path, suffix: str) -> None:
    rows = [
        f"index,prompt{suffix},sub_dims{suffix}",
        f'3,"a sign, ""OPEN""",{dims(DIMS)}',
        f"4,two\u3000pandas,{dims(DIMS)}",
    ]
    file = read(tmp_path, "a.csv", "\n".join(rows) + "\n")
    assert [(p.id, p.text) for p in file.prompts] == [("set-3", 'a sign, "OPEN"'), ("set-4", "two\u3000pandas")]
    assert file.prompts[0].metadata == {
        "testpoints": ["Style", "World Knowledge"],
        "descriptions": ["ink painting", "pyramids"],
    }


def test_chinese_test_points_are_read_under_their_own_keys(tmp_path: Path) -> None:
    file = read(
        tmp_path, "a.csv", f"index,prompt,sub_dims\n0,熊猫,{dims({'考点': ['风格'], '考点对应描述': ['水墨']})}\n"
    )
    assert file.prompts[0].metadata == {"testpoints": ["风格"], "descriptions": ["水墨"]}


def test_a_byte_order_mark_crlf_and_quoted_line_ends_do_no_harm(tmp_path: Path) -> None:
    file = read(tmp_path, "a.csv", '\ufeffprompt,style\r\n"a cat\r\non a mat",ink\r\n\r\na dog,oil\r\n')
    assert texts(file) == ["a cat\non a mat", "a dog"]
    assert [prompt.metadata for prompt in file.prompts] == [{"style": "ink"}, {"style": "oil"}]
    assert file.lines[0] == 2


DAMAGED = {
    "no prompt": f"7,,{dims(DIMS)}",
    "not JSON": "7,a,{Testpoints}",
    "no test points": f"7,a,{dims({'Subjects': 'x'})}",
    "a list": f"7,a,{dims([1])}",
    "uneven": f"7,a,{dims(DIMS | {'Testpoint Description': ['one']})}",
    "no texts": f"7,a,{dims(DIMS | {'Testpoints': [1, 2]})}",
    "empty dims": "7,a,",
    "too many fields": f"7,a,{dims(DIMS)},more",
    "index again": f"1,b,{dims(DIMS)}",
}


def test_a_line_end_of_windows_inside_a_json_text_is_a_line_end(tmp_path: Path) -> None:
    assert texts(read(tmp_path, "rows.jsonl", '{"caption": "a cat\\r\\non a mat"}\n')) == ["a cat\non a mat"]


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_row_is_left_out_by_name_as_the_judge_service_does(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Both readers must see the same prompts, or pictures and judgements would not meet."""
    text = f"index,prompt,sub_dims\n1,good,{dims(DIMS)}\n{DAMAGED[case]}\n2,last,{dims(DIMS)}\n"
    with caplog.at_level(logging.WARNING):
        file = read(tmp_path, "a.csv", text)
    assert texts(file) == ["good", "last"] == [prompt.text for prompt in read_prompts(tmp_path / "a.csv").prompts]
    (problem,) = file.skipped
    assert problem.startswith(f"{tmp_path / 'a.csv'}:3: ")
    assert f"{problem}; the row is left out" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("index,words\n1,a\n", ["the columns are index, words", "exactly one must be prompt", "`prompt_column`"]),
        ("prompt_en,prompt_zh\na,b\n", ["the columns are prompt_en, prompt_zh", "`prompt_column`"]),
        ("", ["the columns are (none)"]),
        ("prompt\n", ["holds no prompt"]),
        (
            "index,prompt,sub_dims\n1,a,\n",
            ["holds no prompt; its 1 rows cannot be used, the first:", "sub_dims: not JSON"],
        ),
        ('prompt\n"' + "a" * 200_000 + '"\n', ["not CSV", "field larger than"]),
    ],
)
def test_a_table_without_prompts_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(DataError) as raised:
        read(tmp_path, "a.csv", text)
    for word in words:
        assert word in str(raised.value)


def test_parquet_without_pyarrow_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"needs pyarrow, which is not installed; install it, or save .* as \.jsonl"):
        read(tmp_path, "a.parquet", "PAR1")


class TableOfRows:
    """What pyarrow gives for a file: rows."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def to_pylist(self) -> list[dict[str, Any]]:
        return self.rows


def test_parquet_rows_are_read_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    rows: list[dict[str, Any]] = [{"caption": "a cat", "n": 1}, {"caption": "a dog", "n": b"x"}]
    parquet.read_table = lambda path: TableOfRows(rows)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", package)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    with pytest.raises(DataError, match=r"a\.parquet:2: metadata\.n: b'x' is a bytes, which JSON does not have"):
        read(tmp_path, "a.parquet", "PAR1")
    del rows[1]
    (prompt,) = read(tmp_path, "a.parquet", "PAR1").prompts
    assert (prompt.text, prompt.metadata) == ("a cat", {"n": 1})


# Source images


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("cat.png", "dog.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def test_source_images_count_from_the_file_and_one_instruction_serves_many(pictures: Path) -> None:
    rows = '{"prompt": "make it blue", "source_images": ["cat.png"]}\n{"prompt": "make it blue", "source_images": ["dog.jpg", "cat.png"]}\n'
    first, second = read(pictures, "edits.jsonl", rows).prompts
    assert first.source_images == (str(pictures / "cat.png"),)
    assert second.source_images == (str(pictures / "dog.jpg"), str(pictures / "cat.png"))
    assert first.id != second.id
    check_disjoint([first], [second])
    with pytest.raises(DataError, match="same prompt"):
        check_disjoint([first], [Prompt("other", "Make it blue", source_images=first.source_images)])
    assert fingerprint([first]) != fingerprint([Prompt(first.id, first.text)])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ('"cat.png"', ["source_images: 'cat.png' is not a list of paths"]),
        ("[]", ["source_images: [] is not a list"]),
        ('["no.png"]', ["source_images[0]: no image at", "no.png", "prompt file's folder"]),
        ('["cat.png", "edits.jsonl"]', ["source_images[1]", "ends in none of .png"]),
        ('["empty.png"]', ["empty.png has 0 bytes"]),
        ("[7]", ["source_images[0]: 7 is a int"]),
        (json.dumps(["cat.png"] * (MAX_SOURCE_IMAGES + 1)), ["9 images are more than 8"]),
        (json.dumps(["a" * 300 + ".png"]), ["cannot be read: File name too long"]),
    ],
)
def test_a_source_image_that_cannot_be_used_is_named(pictures: Path, images: str, words: list[str]) -> None:
    (pictures / "empty.png").touch()
    with pytest.raises(DataError) as raised:
        read(pictures, "edits.jsonl", f'{{"prompt": "a", "source_images": {images}}}')
    for word in words:
        assert word in str(raised.value), str(raised.value)
