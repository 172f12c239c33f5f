"""Which rows are read of which file: formats, folders, saved data sets, hub ids, splits, renamed columns, held-out rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pytest

from tests.support.text_rows import text_file, write_jsonl, write_parquet
from trainer.data.prompts import DataError
from trainer.data.rows import files as row_files
from trainer.data.rows.splits import held_out_rows, parse_split
from trainer.data.rows.table import open_table

ROWS = [{"n": n} for n in range(20)]


def numbers(path: Path, **fields: Any) -> list[int]:
    """Column `n` of what a section reads."""
    table = open_table(text_file(path, **fields), field="data", path=str(path))
    return [row["n"] for _, row in table.read() if isinstance(row, dict)]


@pytest.mark.parametrize(
    ("split", "count", "taken"),
    [
        ("train", 20, range(20)),
        ("train[:5%]", 20, range(1)),
        ("train[:10]", 20, range(10)),
        ("train[10:20]", 30, range(10, 20)),
        ("train[-25%:]", 20, range(15, 20)),
        ("train[-3:]", 20, range(17, 20)),
        ("train[50%:]", 20, range(10, 20)),
        ("train[:5%]", 10, range(0)),  # a half is rounded to the even neighbour, as `datasets` does
        ("train[:15%]", 10, range(2)),
        ("train[5:900]", 20, range(5, 20)),
    ],
)
def test_a_split_takes_these_rows(split: str, count: int, taken: range) -> None:
    (part,) = parse_split("data.split", split)
    assert (part.name, list(part.rows(count))) == ("train", list(taken))


@pytest.mark.parametrize("split", ["", "train[5]", "train[a:b]", "train[:5%", "[:5%]", "train+"])
def test_a_split_that_is_none_is_refused_with_how_one_is_written(split: str) -> None:
    with pytest.raises(DataError, match=r"data\.split = .*is no split; write train, train\[:5%\] or train\[10:20\]"):
        parse_split("data.split", split)


def test_every_format_gives_the_same_rows_with_their_places(tmp_path: Path) -> None:
    array = tmp_path / "a.json"
    array.write_text(json.dumps(ROWS))
    lines = write_jsonl(tmp_path / "b.jsonl", ROWS)
    lines.write_text("\n" + lines.read_text().replace("\n", "\r\n\n"))
    called_json = write_jsonl(tmp_path / "c.json", ROWS)
    table = write_parquet(tmp_path / "d.parquet", ROWS, group=7)
    for path, place in ((array, 4), (lines, 8), (called_json, 4), (table, 4)):
        assert numbers(path) == list(range(20))
        section = open_table(text_file(path, split="train[3:5]"), field="data", path=str(path))
        found = list(section.read())
        assert [row for _, row in found] == ROWS[3:5] and found[0][0] == f"{path}:{place}"


def test_only_the_rows_that_are_taken_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file costs sixteen bytes a line, and the rest of it is never in memory."""
    loads = json.loads
    path = write_jsonl(tmp_path / "large.jsonl", ({"n": n, "text": "x" * 1000} for n in range(2000)))
    parsed: list[int] = []

    def counting(text: str) -> Any:
        parsed.append(len(text))
        return loads(text)

    opened = row_files.JsonlRows(path)
    monkeypatch.setattr(row_files.json, "loads", counting)
    assert (opened._starts.itemsize + opened._lines.itemsize) * len(opened) == 32_000
    assert [row["n"] for _, row in opened.read([1999, 3]) if isinstance(row, dict)] == [1999, 3]
    assert len(parsed) == 2


def test_a_json_file_may_hold_a_list_for_each_split(tmp_path: Path) -> None:
    path = tmp_path / "both.json"
    path.write_text(json.dumps({"version": 1, "train": ROWS[:2], "test": ROWS[5:6]}))
    assert (
        numbers(path) == [0, 1]
        and numbers(path, split="test") == [5]
        and numbers(path, split="train+test") == [0, 1, 5]
    )
    with pytest.raises(
        DataError, match="holds the splits train, test, and none called validation; give one as `split`"
    ):
        numbers(path, split="validation")


def test_a_folder_is_read_as_its_files_are_named(tmp_path: Path) -> None:
    for n in (0, 1):
        write_parquet(tmp_path / f"hub/data/train-0000{n}-of-00002.parquet", ROWS[n * 10 : n * 10 + 10])
    write_parquet(tmp_path / "hub/data/test-00000-of-00001.parquet", ROWS[:1])
    (tmp_path / "hub" / "dataset_infos.json").write_text("{}")
    assert numbers(tmp_path / "hub") == list(range(20))
    assert numbers(tmp_path / "hub", split="train[8:12]") == [8, 9, 10, 11]
    assert numbers(tmp_path / "hub", split="test") == [0]
    with pytest.raises(DataError, match="has no split called validation; there are: test, train; give one of them"):
        numbers(tmp_path / "hub", split="validation")
    write_jsonl(tmp_path / "plain/one.jsonl", ROWS[:3])
    write_jsonl(tmp_path / "plain/two.jsonl", ROWS[3:5])
    assert numbers(tmp_path / "plain") == [0, 1, 2, 3, 4]
    write_parquet(tmp_path / "plain/three.parquet", ROWS)
    with pytest.raises(DataError, match=r"is there as \.jsonl and \.parquet; choose one by `format`"):
        numbers(tmp_path / "plain")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no data: no file that ends in \.parquet, \.jsonl, \.json"):
        numbers(tmp_path / "empty")


def save_to_disk(folder: Path, rows: list[dict[str, Any]], **state: Any) -> None:
    """What `Dataset.save_to_disk` leaves: an Arrow stream in two files, and the state that names them."""
    folder.mkdir(parents=True)
    names = [f"data-0000{n}-of-00002.arrow" for n in (0, 1)]
    for name, part in zip(names, (rows[:4], rows[4:]), strict=True):
        table = pa.Table.from_pylist(part)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **state}))


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "one", ROWS[:9])
    assert numbers(tmp_path / "one") == list(range(9)) and numbers(tmp_path / "one", split="train[3:6]") == [3, 4, 5]
    save_to_disk(tmp_path / "all" / "train", ROWS[:9])
    save_to_disk(tmp_path / "all" / "validation", ROWS[9:])
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    assert numbers(tmp_path / "all") == list(range(9)) and numbers(tmp_path / "all", split="dev") == list(range(9, 20))
    save_to_disk(tmp_path / "selected", ROWS, _indices_files=[{"filename": "i.arrow"}])
    with pytest.raises(DataError, match=r"a saved selection of rows; save it again with flatten_indices\(\)"):
        numbers(tmp_path / "selected")
    save_to_disk(tmp_path / "outside", ROWS, _data_files=[{"filename": "../one/data-00000-of-00002.arrow"}])
    with pytest.raises(DataError, match="names files outside its folder"):
        numbers(tmp_path / "outside")


def test_a_hub_id_is_fetched_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "snapshot/train.jsonl", ROWS)
    asked = []

    def snapshot_at_hand(name: str, repo_type: str, revision: str | None, **more: Any) -> str:
        asked.append((name, repo_type, revision))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_at_hand)
    assert numbers(Path("some/data-set"), split="train[:2]", image_cache=str(tmp_path)) == [0, 1]
    assert numbers(Path("some/data-set@v1"), split="train[:1]", image_cache=str(tmp_path)) == [0]
    assert asked == [("some/data-set", "dataset", None), ("some/data-set", "dataset", "v1")]


def test_a_hub_that_does_not_answer_is_said_with_both_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(name: str, **asked: Any) -> str:
        raise ConnectionError("Network is unreachable")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(DataError) as raised:
        numbers(Path("some/data-set"))
    for words in (
        "path = some/data-set is no folder here, and the hub did not give it (Network is unreachable)",
        "hf download some/data-set --repo-type dataset --local-dir data/data-set",
        "copy data/data-set here and set path to it",
        f"If a path was meant: nothing is called some in {Path.cwd()}; correct it, or give it as an absolute path",
    ):
        assert words in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", "", "has 0 rows, and split train takes none of them"),
        ("a.json", "{}", "{} is no list of objects"),
        ("a.json", "[1", "not JSON"),
        ("a.parquet", "no table", "not Parquet"),
        ("a.xml", "<a/>", "rows are read from .json"),
    ],
)
def test_a_file_that_holds_no_rows_is_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as raised:
        numbers(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value) and words in str(raised.value)


def test_a_path_that_is_not_there_is_said_with_the_nearest(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "questions.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no data at .*question\.jsonl; did you mean .*questions\.jsonl"):
        numbers(tmp_path / "question.jsonl")


def test_what_is_no_row_is_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 0}\n[1]\n{"n": 1\n{"n": 3}\n"\xff"\n', encoding="latin-1")
    section = open_table(text_file(path), field="conversations", path=str(path))
    with pytest.raises(DataError) as raised:
        section.make("conversations", lambda where, row: row["n"])
    for words in (
        "conversations: 3 of 5 rows cannot be used; correct them, or set conversations.bad_rows: leave_out",
        f"{path}:2: [1] is a list, not an object",
        f"{path}:3: not a JSON object",
        f"{path}:5: not UTF-8 text (byte 0xff)",
    ):
        assert words in str(raised.value)
    kept, problems = open_table(text_file(path, bad_rows="leave_out"), field="c", path=str(path)).make(
        "c", lambda where, row: row["n"]
    )
    assert [value for _, _, value in kept] == [0, 3] and len(problems) == 3
    path.write_text("[]\n")
    with pytest.raises(DataError, match=r"holds no row; the first that cannot be used: .*:1: \[\] is a list"):
        open_table(text_file(path, bad_rows="leave_out"), field="c", path=str(path)).make("c", lambda where, row: row)


def test_columns_are_renamed_or_left_out_first(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "x", "n": 1, "note": 3}])
    section = open_table(text_file(path, rename_columns={"q": "prompt", "note": None}), field="d", path=str(path))
    assert [row for _, row in section.read()] == [{"prompt": "x", "n": 1}]
    swapped = open_table(text_file(path, rename_columns={"q": "n", "n": "q"}), field="d", path=str(path))
    assert [row for _, row in swapped.read()] == [{"n": "x", "q": 1, "note": 3}]
    for names, words in (
        ({"question": "prompt"}, "there is no column question; the columns are q, n, note"),
        ({"notes": "prompt"}, "there is no column notes; did you mean note?"),
        ({"q": "n"}, "q is to be called n, but there is a column of that name; leave it out by `n: null`"),
    ):
        with pytest.raises(DataError) as raised:
            open_table(text_file(path, rename_columns=names), field="d", path=str(path)).make("d", lambda w, row: row)
        assert f"{path}:1: rename_columns: {words}" in str(raised.value)


def test_two_columns_cannot_get_one_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rename_columns calls both a and b prompt; give them different names"):
        text_file(tmp_path, rename_columns={"a": "prompt", "b": "prompt"})


def test_at_most_so_many_rows_are_taken(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert numbers(path, max_samples=3, split="train[10:]") == [10, 11, 12] and len(numbers(path, max_samples=99)) == 20


def test_the_held_out_rows_are_those_of_a_permutation_with_seed_42() -> None:
    """A fifth, rounded up, from the beginning of NumPy's permutation, as `train_test_split(test_size=0.2, seed=42)` has it."""
    trained, held = held_out_rows(10, 0.2)
    assert held == [5, 6] and trained == [0, 1, 2, 3, 4, 7, 8, 9]
    assert len(held_out_rows(11, 0.2)[1]) == 3
    with pytest.raises(DataError, match=r"hold_out = 0\.9 of 2 rows leaves 0 to train on; lower it or add rows"):
        held_out_rows(2, 0.9)
