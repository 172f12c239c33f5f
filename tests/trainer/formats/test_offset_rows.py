"""Rows of JSON arrays and lines, found by their places: what each holds, where it stands, and what is said of broken ones."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from trainer.data.prompts.checks import DataError
from trainer.data.rows import offsets
from trainer.data.rows.offsets import OffsetRows

# Everything that could be taken for the end of a row, inside texts and around them.
ROWS: list[dict[str, Any]] = [
    {"n": n, "text": 'a "quoted" ]}{[, \\' * (n % 4) + "é\\", "deep": [{"in": [n, {"x": "}"}]}, []]} for n in range(50)
]


def written(tmp_path: Path, text: str | bytes, name: str = "data.json") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def all_of(rows: OffsetRows) -> list[Any]:
    return [rows.row(number) for number in range(len(rows))]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=3, ensure_ascii=False),
        "\n \n" + json.dumps(ROWS),
        "\ufeff" + json.dumps(ROWS),
        "\n\n".join(map(json.dumps, ROWS)) + "\n\n",
        "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    ],
    ids=["array", "indented", "space before", "mark before", "lines", "lines of Windows"],
)
def test_rows_are_those_of_the_file(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = OffsetRows(written(tmp_path, text))
    assert all_of(whole) == ROWS
    monkeypatch.setattr(offsets, "_WINDOW", 7)  # rows lie across windows
    assert all_of(OffsetRows(whole.path)) == ROWS
    assert whole.row(3) == whole.row(3)


def test_a_row_is_named_by_its_number_and_by_its_line(tmp_path: Path) -> None:
    array = OffsetRows(written(tmp_path, json.dumps(ROWS)))
    lines = OffsetRows(written(tmp_path, '{"a": 1}\n\n{"a": 2}\n', "data.jsonl"))
    assert (array.where(6), lines.where(1)) == (f"{array.path}:7", f"{lines.path}:3")


def test_a_broken_row_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    rows = OffsetRows(written(tmp_path, '[{"a": 1}, {"a" 2}, 3, [4], "x", null, {"a": 5}]'))
    assert (rows.row(0), rows.row(6)) == ({"a": 1}, {"a": 5})
    for number, message in [
        (1, "data.json:2: not a JSON object (Expecting ':' delimiter"),
        (2, "data.json:3: 3 is a int, not an object"),
        (3, "data.json:4: [4] is a list, not an object"),
        (4, "data.json:5: 'x' is a str, not an object"),
        (5, "data.json:6: None is a NoneType, not an object"),
    ]:
        with pytest.raises(DataError) as error:
            rows.row(number)
        assert message in str(error.value)


def test_a_broken_line_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    text = b'{"a": 1}\n{"a": "open}\n{"a": 3} x\n{"a": "\xff"}\n{"a": 5}'
    rows = OffsetRows(written(tmp_path, text, "data.jsonl"))
    assert (rows.row(0), rows.row(4)) == ({"a": 1}, {"a": 5})
    for number, message in [
        (1, "data.jsonl:2: not a JSON object (Unterminated string"),
        (2, "data.jsonl:3: not a JSON object (Extra data"),
        (3, "data.jsonl:4: not UTF-8 text (byte 0xff)"),
    ]:
        with pytest.raises(DataError) as error:
            rows.row(number)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": 2}', "the file ends at byte 19, behind row 2, where a comma or ] belongs"),
        ('[{"a": 1}, {"a": 2', "stands at byte 11, behind row 1, where a row belongs"),
        ('[{"a": 1} {"a": 2}]', "stands at byte 10, behind row 1, where a comma or ] belongs"),
        ('[{"a": 1},]', "']' stands at byte 10, behind row 1, where a row belongs"),
        ('[,{"a": 1}]', "',{\"a\": 1}]' stands at byte 1, behind row 0, where a row belongs"),
        ('[{"a": "b}]', "behind row 0, where a row belongs: a quote or bracket before it may have no end"),
        ('[{"a": 1}]]', "1 bytes stand behind the array's end"),
        ("[" + "[" * 9 + "]" * 9 + "]", "where a row belongs"),
        (
            '{"rows": [{"a": 1},\n {"a": 2}]}',
            'begins with an object over several lines, \'{"rows": [{"a": 1},\'; a file is an array of rows',
        ),
        ('{\n "a": 1\n}\n{\n "a": 2\n}', "begins with an object over several lines, '{'"),
        (
            '[{"a": 1}]\n[{"a": 2}]',
            "10 bytes stand behind the array's end; leave them out, or, where each line is a list of rows, end",
        ),
        ("[]", "holds no row"),
        ("", "holds no row"),
        (" \n\n", "holds no row"),
    ],
)
def test_an_array_that_cannot_be_looked_through_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        OffsetRows(written(tmp_path, text))
    assert message in str(error.value)
    assert "data.json" in str(error.value)


def test_a_first_line_that_is_cut_off_hides_no_other(tmp_path: Path) -> None:
    rows = OffsetRows(written(tmp_path, '{"a": 1, "b\n{"a": 2}\n', "data.jsonl"))
    assert rows.row(1) == {"a": 2}
    with pytest.raises(DataError, match=r"data\.jsonl:1: not a JSON object"):
        rows.row(0)


def test_a_field_that_comes_twice_is_named(tmp_path: Path) -> None:
    rows = OffsetRows(written(tmp_path, '[{"a": 1, "b": {"c": 2, "c": 3}}, {"a": 1, "a": 2}]'))
    for number, name in enumerate("ca"):
        with pytest.raises(
            DataError, match=rf"data\.json:{number + 1}: not a JSON object \(the field '{name}' comes twice\)"
        ):
            rows.row(number)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32", "latin-1"])
def test_another_encoding_is_said(tmp_path: Path, encoding: str) -> None:
    """JSON's own reader would guess it, row by row."""
    mark = "\ufeff" * encoding.endswith("e")
    raw = f'{mark}[{{"a": "\xe9"}}]'.encode(encoding)
    with pytest.raises(DataError, match=r"not UTF-8 text|not a JSON object"):
        all_of(OffsetRows(written(tmp_path, raw)))


def test_a_folder_and_a_name_that_is_too_long_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder; name the file with the rows in it"):
        OffsetRows(tmp_path)
    with pytest.raises(DataError, match=r"no file at .*xxx"):
        OffsetRows(tmp_path / ("x" * 400))


def test_no_file_is_said_with_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, "[]", "rows.json")
    with pytest.raises(DataError, match=r"no file at .*row\.json; did you mean .*rows\.json"):
        OffsetRows(tmp_path / "row.json")


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_lists_of_rows_are_rows(tmp_path: Path, name: str) -> None:
    a, b, c, d = ({"n": n} for n in range(4))
    held: list[Any] = [a, [b, c], [], [d]]
    text = json.dumps(held) if name == "data.json" else "\n".join(map(json.dumps, held))
    rows = OffsetRows(written(tmp_path, text, name), lists=True)
    assert [rows.row(n) for n in (0, 1, 2, 4)] == [a, b, c, d]
    assert [rows.where(n).removeprefix(str(rows.path)) for n in range(5)] == [":1", ":2[0]", ":2[1]", ":3", ":4"]
    with pytest.raises(DataError, match=r":3: \[\] is a list, not an object"):
        rows.row(3)


def test_an_array_in_a_file_of_lines_is_an_array(tmp_path: Path) -> None:
    rows = OffsetRows(written(tmp_path, json.dumps(ROWS, indent=1), "data.jsonl"), lists=True)
    assert all_of(rows) == ROWS


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_memory_grows_with_rows_and_not_with_what_they_hold(tmp_path: Path, name: str) -> None:
    rows = [{"n": n, "text": "x" * 2000} for n in range(2000)]  # 4 MB
    path = written(tmp_path, json.dumps(rows) if name == "data.json" else "\n".join(map(json.dumps, rows)), name)
    OffsetRows(path)
    tracemalloc.start()
    found = OffsetRows(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.row(1999) == rows[1999]
    assert kept < 150_000  # 16 bytes a row, and what arrays keep ready
    assert peak < 2_000_000


def any_value(draw: random.Random, depth: int) -> Any:
    """A JSON value full of what could be taken for an end."""
    kind = draw.randrange(8 if depth else 5)
    if kind < 2:
        return draw.choice([None, True, 0, -1.5e10, 3])
    if kind < 5:
        return "".join(draw.choice('ab"\\{}[],: \n\té\u2028') for _ in range(draw.randrange(8)))
    if kind < 7:
        return {draw.choice('a"\\{}[],:'): any_value(draw, depth - 1) for _ in range(draw.randrange(3))}
    return [any_value(draw, depth - 1) for _ in range(draw.randrange(3))]


def test_damaged_files_give_what_json_gives_or_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, path = random.Random(0), tmp_path / "data.json"
    refused = 0
    for _ in range(300):
        monkeypatch.setattr(offsets, "_WINDOW", draw.choice([1, 3, 17, 1000]))
        held = [{draw.choice('a"}]'): any_value(draw, 3)} for _ in range(1 + draw.randrange(5))]
        raw = bytearray(json.dumps(held, indent=draw.choice([None, 0, 2]), ensure_ascii=False).encode())
        path.write_bytes(raw)
        assert all_of(OffsetRows(path)) == held
        place = draw.randrange(len(raw))
        raw[place : place + 1] = bytes([draw.randrange(256)] * draw.randrange(2))  # a byte changed, or one less
        path.write_bytes(raw)
        try:
            found = [row_or_none(OffsetRows(path), number) for number in range(len(OffsetRows(path)))]
        except DataError:
            refused += 1
            found = None
        try:
            whole = json.loads(raw)
        except ValueError:
            continue
        if isinstance(whole, list) and whole:
            assert found == [each if isinstance(each, dict) else None for each in whole]
    assert 0 < refused < 300


def row_or_none(rows: OffsetRows, number: int) -> dict[str, Any] | None:
    try:
        return rows.row(number)
    except DataError:
        return None
