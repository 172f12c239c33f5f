"""Reading long runs cheaply: columns in C where rows are flat, what was read kept for the next start, curves let go and read again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.run_folders import evaluation_entries, lines_of, make_run, rows_of
from trainer.records.rows.columns import MAX_KEYS, ColumnReader
from trainer.records.rows.tail import Tail
from trainer.report.reading import Reading
from trainer.runs import cache as caching
from trainer.runs.cache import Cache, usual_folder
from trainer.runs.catalogue import Catalogue
from trainer.runs.folder import Folder
from trainer.runs.run import Run
from trainer.runs.table import cells, row_of


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every piece of a file of rows that is read, its length."""
    found: list[int] = []
    pieces = Tail.pieces

    def counted(tail: Tail, file: Any) -> Any:
        for piece in pieces(tail, file):
            found.append(len(piece))
            yield piece

    monkeypatch.setattr(Tail, "pieces", counted)
    return found


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A cache for which ten rows are worth it."""
    monkeypatch.setattr(caching, "WORTH_BYTES", 10_000)
    return Cache(tmp_path / "cache")


def opened(folder: Path, cache: Cache | None = None) -> Run:
    run = Run(Folder(folder.parent, (folder.name,)), cache)
    run.glance()
    run.read()
    return run


def told(run: Run) -> tuple[Any, ...]:
    """All that pages say of a run's rows."""
    curves = {
        key: np.stack([c.steps, c.mean, c.low, c.high]).tolist() for key in run.curves if (c := run.curves.curve(key))
    }
    evaluations = {key: list(run.evaluations.values(key)) for key in run.evaluations}
    row = row_of(run)
    return json.dumps([curves, evaluations, list(run.evaluations.steps)]), repr(row), cells(row, ["ocr", "color"], None)


def only_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ColumnReader, data: bytes) -> Any:
        raise AssertionError(f"read row by row: {data[:200]!r}")

    monkeypatch.setattr(ColumnReader, "_one_by_one", refuse)


def test_what_a_trainer_writes_is_read_in_columns_and_is_what_rows_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """With evaluations in few rows, nulls, whole numbers, and a key that comes late."""
    rows = rows_of(300, every=50)
    rows[7]["grad_norm"] = None
    rows[-1]["late"] = 3
    for start in (0, 100, 200):
        data = lines_of(rows[start : start + 101]).encode()
        slow = ColumnReader()._one_by_one(data)
        with monkeypatch.context() as patched:
            only_in_c(patched)
            fast = ColumnReader().read(data)
        assert fast.steps.tolist() == slow.steps.tolist() and set(fast.numbers) == set(slow.numbers)
        for key, values in fast.numbers.items():
            np.testing.assert_array_equal(values, slow.numbers[key])
        assert fast.places_of("eval/") == slow.places_of("eval/") == [n for n in range(101) if n % 50 == 0]
        assert [fast.row(n) for n in (0, 7, 100)] == [rows[start + n] for n in (0, 7, 100)]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 2, "a": [1]}',
        '{"step": 2, "a": "words"}',
        '{"step": 2, "a": true}',
        '{"step": 2, "a": NaN}',
        '{"step": 2, "a": 1e300}',
        '{"step": 2, "b": {"c": 1}}',
        '{"step": 2, "step": 2}',
        '{"step": 2.5, "a": 1}',
        '{"step": -1, "a": 1}',
        '{"step": null, "a": 1}',
        '{"step": true}',
        '{"step": 1' + "0" * 30 + "}",
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"step": 2}{"step": 2}',
        '{"step": 2',
        "{}",
        "",
        "\xff",
    ],
)
def test_a_line_that_is_no_flat_row_of_numbers_spoils_no_other(line: str) -> None:
    data = b'{"step": 1, "a": 1}\n' + line.encode("latin-1") + b'\n{"step": 3, "a": 3}\n'
    columns = ColumnReader().read(data)
    steps = columns.steps.tolist()
    assert steps in ([1, 3], [1, 2, 3]) and columns.row(len(steps) - 1) == {"step": 3, "a": 3}
    values = dict(zip(steps, columns.numbers["a"].tolist(), strict=True))
    assert (values[1], values[3]) == (1, 3) and np.isnan(values.get(2, np.nan))


def test_more_keys_than_metrics_have_are_left_out() -> None:
    reader = ColumnReader()
    for start in range(0, 3 * MAX_KEYS, 500):
        reader.read(json.dumps({"step": 1} | {f"k{n}": n for n in range(start, start + 500)}).encode() + b"\n")
    assert (
        len(reader.read(json.dumps({"step": 2} | {f"k{n}": 1 for n in range(3 * MAX_KEYS)}).encode() + b"\n").numbers)
        == MAX_KEYS
    )


def test_a_second_start_reads_only_what_has_come_since(tmp_path: Path, kept: Cache, bytes_read: list[int]) -> None:
    rows = rows_of(400, every=50)
    rows[30] |= {"failed/ocr/timeout": 2, "alarm/diversity": 1.0, "eval/ocr": 0.5, "eval/step": 30}
    folder = make_run(tmp_path / "run", rows[:301], finished=False)
    first = opened(folder, kept)
    whole = (folder / "metrics.jsonl").stat().st_size
    assert sum(bytes_read) == whole and len(list(kept.folder.glob("*.npz"))) == 1
    bytes_read.clear()
    again = opened(folder, Cache(kept.folder))
    assert told(again) == told(first) and bytes_read == []
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(lines_of(rows[301:]))
    later = opened(folder, Cache(kept.folder))
    assert sum(bytes_read) == len(lines_of(rows[301:]))
    assert told(later) == told(opened(folder)) and later.failed == {("ocr", "timeout"): 2}


def replace(path: Path) -> None:
    """As a start from a checkpoint does: earlier rows stay, in another file."""
    (path.parent / "new").write_text(lines_of(rows_of(200, every=50)))
    (path.parent / "new").replace(path)


def rewrite(path: Path) -> None:
    """In place, as long as before, with another last row."""
    path.write_text(path.read_text()[:-3] + "9}\n")


@pytest.mark.parametrize("change", [replace, rewrite, lambda path: path.write_text("")])
def test_an_entry_of_rows_that_are_no_more_is_not_used(
    tmp_path: Path, kept: Cache, change: Callable[[Path], object]
) -> None:
    folder = make_run(tmp_path / "run", rows_of(300, every=50))
    before = told(opened(folder, kept))
    change(folder / "metrics.jsonl")
    after = told(opened(folder, Cache(kept.folder)))
    assert after == told(opened(folder)) and after != before


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY", None])
def test_a_damaged_entry_or_one_of_other_code_is_made_anew(
    tmp_path: Path, kept: Cache, damage: bytes | None, monkeypatch: pytest.MonkeyPatch, bytes_read: list[int]
) -> None:
    folder = make_run(tmp_path / "run", rows_of(300, every=50))
    first = told(opened(folder, kept))
    (entry,) = kept.folder.glob("*.npz")
    if damage is None:
        monkeypatch.setattr(caching, "_code", lambda: "another")
    else:
        entry.write_bytes(damage)
    bytes_read.clear()
    assert told(opened(folder, Cache(kept.folder))) == first
    assert sum(bytes_read) == (folder / "metrics.jsonl").stat().st_size
    bytes_read.clear()
    assert told(opened(folder, Cache(kept.folder))) == first and bytes_read == []


def test_a_cache_that_cannot_be_written_is_said_once_and_costs_nothing_else(
    tmp_path: Path, kept: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    nowhere = Cache(tmp_path / "file" / "cache")
    for name in ("run", "another"):
        folder = make_run(tmp_path / name, rows_of(300, every=50))
        assert told(opened(folder, nowhere)) == told(opened(folder))
    assert capsys.readouterr().err.count("every start reads all rows again") == 1 and nowhere.problem


def test_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert usual_folder() == tmp_path / "rewards" / "runs"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert usual_folder() == tmp_path / "home" / ".cache" / "rewards" / "runs"


def test_few_entries_are_kept_and_what_was_left_half_written_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "MAX_ENTRIES", 2)
    for age, name in enumerate(("a.npz", "b.npz", "c.npz", ".d.npz.1.2")):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    Cache(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_curves_that_were_let_go_come_back_and_no_row_counts_twice(tmp_path: Path) -> None:
    rows = rows_of(60, every=20)
    folder = make_run(tmp_path / "run", rows[:41], finished=False)
    run = opened(folder)
    before = repr(row_of(run))
    run.let_go()
    assert repr(row_of(run)) == before and not run.glance()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(lines_of(rows[41:]))
    assert run.glance() and run.step == 60
    assert told(run) == told(opened(folder))
    run.let_go()
    assert run.curves.curve("grad_norm").steps[-1] == 60


def test_the_memory_of_curves_does_not_grow_with_the_number_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.runs.catalogue.KEPT_RUNS", 2)
    for name in "abcd":
        make_run(tmp_path / name, rows_of(5, every=5))
    catalogue = Catalogue(tmp_path)
    for name in "abcd":
        catalogue.whole(name)
    held = [run.name for run in catalogue.runs() if run._reading is not None]
    assert held == ["c", "d"] and catalogue.unread() == 0
    assert row_of(catalogue.get("a")).cpu_s == 15


def test_a_row_that_comes_within_the_same_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    """The clock of files ticks every few milliseconds: a time alone would leave the last row of a run unread for ever."""
    folder = make_run(tmp_path / "run", rows_of(5, every=5), finished=False)
    run, path = opened(folder), folder / "metrics.jsonl"
    about = path.stat()
    with path.open("a") as file:
        file.write(lines_of([{"step": 6, **evaluation_entries(0.25)}]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert run.glance() and run.step == 6 and row_of(run).held["ocr"].mean == 0.25


def test_a_reading_survives_being_written_down() -> None:
    reading = Reading()
    told_of, arrays = reading.as_arrays()
    again = Reading.from_arrays(json.loads(json.dumps(told_of | {"tail": {**told_of["tail"], "file": [1, 2]}})), arrays)
    assert list(again.curves) == [] and again.tail.offset == 0
