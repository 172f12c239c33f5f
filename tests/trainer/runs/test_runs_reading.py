"""What the runs page reads: rows as they come, curves in bounded memory, states from records, and nothing outside."""

from __future__ import annotations

import fcntl
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.run_folders import lines_of, make_run, rows_of
from trainer.config import ConfigError, LoggingConfig
from trainer.records.recorder import Recorder
from trainer.records.rows.columns import ColumnReader
from trainer.records.rows.curves import CAPACITY, Curves, Evaluations
from trainer.records.rows.tail import Tail, newest, parse
from trainer.runs.axes import place_of
from trainer.runs.catalogue import Catalogue
from trainer.runs.folder import Folder
from trainer.runs.run import Run
from trainer.runs.run_charts import charts_of
from trainer.runs.state import gpus, newest_crash
from trainer.runs.table import row_of


def opened(folder: Path) -> Run:
    run = Run(Folder(folder.parent, (folder.name,)))
    run.glance()
    run.read()
    return run


def read_steps(tail: list[Tail], path: Path) -> list[int]:
    """The steps that have come; `tail` holds how far the file was read."""
    with path.open("rb") as file:
        if not tail or tail[0].is_another(file):
            tail[:] = [Tail()]
        return [row["step"] for piece in tail[0].pieces(file) for row in parse(piece)]


def test_only_new_whole_lines_are_read(tmp_path):
    path, tail = tmp_path / "metrics.jsonl", []
    path.write_text('{"step": 1}\n{"step": 2}\nno row\n[3]\n{"step": true}\n{"step": 3')
    assert read_steps(tail, path) == [1, 2]
    assert read_steps(tail, path) == []
    with path.open("a") as file:
        file.write('}\n{"step": 4}\n')
    assert read_steps(tail, path) == [3, 4]


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_was_cut_is_read_anew(tmp_path, replaced):
    path, tail = tmp_path / "metrics.jsonl", []
    path.write_text("".join(f'{{"step": {n}}}\n' for n in range(1, 6)))
    assert read_steps(tail, path) == [1, 2, 3, 4, 5]
    rest = '{"step": 1}\n{"step": 2}\n{"step": 3, "again": 1}\n{"step": 4}\n{"step": 5}\n'
    if replaced:  # by a rename, as a start from a checkpoint does
        (tmp_path / "new").write_text(rest)
        (tmp_path / "new").replace(path)
    else:
        path.write_text(rest)
    assert read_steps(tail, path) == [1, 2, 3, 4, 5]


def test_a_line_longer_than_can_be_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": "' + "y" * 3_000_000 + '"}\n{"step": 2}\n')
    assert read_steps([], path) == [2]


def test_the_end_of_a_long_file_is_seen_without_reading_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": n, "pad": "x" * 100} | ({"eval/ocr": n / 1e4} if n % 500 == 0 else {}) for n in range(10_000)]
    path.write_text(lines_of(lines) + '{"step": 10000, "to')
    with path.open("rb") as file:
        row, evaluated = newest(file)
        assert file.tell() == path.stat().st_size
    assert row["step"] == 9999 and evaluated["eval/ocr"] == 0.95
    path.write_text(lines_of(lines[:1]) + lines_of(lines[1:400]) * 10)
    with path.open("rb") as file:
        assert newest(file)[1] is None  # further away than is looked


def test_points_stand_for_many_rows_and_lose_no_sum_and_no_spike():
    curves, values = Curves(), [math.sin(n) for n in range(1, 10_001)]
    values[7000] = 50.0
    values[3] = math.nan
    steps = np.arange(1, 10_001)
    for start in range(0, 10_000, 777):
        part = slice(start, start + 777)
        curves.add(steps[part], {"x": np.array(values[part]), "late": np.full(len(values[part]), np.nan)})
    curve = curves.curve("x")
    assert curve is not None and len(curve.steps) <= CAPACITY and curve.joined
    assert curve.steps[-1] == 10_000 and list(curve.steps) == sorted(set(curve.steps))
    assert np.nanmax(curve.high) == 50 and np.nanmin(curve.low) == pytest.approx(min(values))
    assert curves.sums("x").sum() == pytest.approx(np.nansum(values), rel=1e-5)
    assert np.isnan(curves.curve("late").mean).all() and curves.curve("absent") is None


@pytest.mark.parametrize("cut", [1, 7, 300, 1000])
def test_curves_do_not_depend_on_the_portions_that_rows_come_in(cut):
    columns = ColumnReader().read(lines_of(rows_of(1000)[1:]).encode())
    one, other = Curves(), Curves()
    one.add(columns.steps, columns.numbers)
    for start in range(0, 1000, cut):
        part = slice(start, start + cut)
        other.add(columns.steps[part], {key: values[part] for key, values in columns.numbers.items()})
    for key in one:
        first, second = one.curve(key), other.curve(key)
        np.testing.assert_array_equal(first.steps, second.steps)
        np.testing.assert_allclose(first.mean, second.mean, rtol=1e-5, atol=1e-12)
        np.testing.assert_array_equal(first.high, second.high)


def test_evaluations_are_kept_with_the_first_and_the_last():
    kept = Evaluations(most=8)
    for step in range(0, 200, 10):
        kept.add(step, {"eval/ocr": step / 200, "eval/ocr/low": None if step else 0.0})
    assert len(kept.steps) <= 8 and kept.steps[0] == 0 and kept.steps[-1] == 190
    assert list(kept.values("eval/ocr")) == [step / 200 for step in kept.steps]
    steps, (_, lows) = kept.points(["eval/ocr", "eval/ocr/low"])
    assert steps == list(kept.steps) and lows[0] == 0 and all(map(math.isnan, lows[1:]))


def test_what_the_recorder_writes_is_what_the_table_says(tmp_path):
    """Through the real writer: the page reads what a trainer leaves, not what a test believes."""
    logging = LoggingConfig.model_validate({"report_to": [], "progress": False})
    folder = tmp_path / "run"
    with Recorder(
        folder, config_yaml="seed: 3\nmax_steps: 2\n", is_main=True, resume_step=None, max_steps=2, logging=logging
    ) as recorder:
        for row in rows_of(2, every=2):
            recorder.record(row | {"failed/ocr/timeout": 2})
        recorder.write_summary({"steps": 2, "stopped": None, "owed": None, "hardware": "4 x NVIDIA H200"})
    (folder / "config.yaml").write_text("seed: 3\nmax_steps: 2\nrun_name: named\n")
    row = row_of(opened(folder))
    assert (row.state, row.step, row.max_steps, row.title, row.seed) == ("finished", 2, 2, "named", "3")
    assert row.wall_s == pytest.approx(2 * 2.0 + 2 * 4.0) and row.cpu_s == 6.0
    assert row.gpu_s == pytest.approx(4 * 12.0) and row.failed == 6
    assert row.held["ocr"].mean == pytest.approx(0.9) and row.held["ocr"].verdict == "up"
    assert row.held["ocr"].words == ("0.900", "0.870 to 0.930", "+0.400 (+0.360 to +0.440)")


def test_a_glance_says_what_it_can_before_the_rows_are_read(tmp_path):
    folder = make_run(tmp_path / "run", rows_of(400))
    run = Run(Folder(tmp_path, ("run",)))
    run.glance()
    row = row_of(run)
    assert not run.complete and (row.step, row.state, row.failed) == (400, "finished", 0)
    assert row.held["ocr"].mean == pytest.approx(0.9) and math.isnan(row.cpu_s)
    assert opened(folder).complete


def test_curves_are_placed_by_what_was_spent(tmp_path):
    run = opened(make_run(tmp_path / "run", rows_of(10, every=5)))
    told = {axis: place_of(run, axis) for axis in ("step", "seconds", "cpu", "gpu", "images")}
    assert {axis: place([0, 5, 10]) for axis, place in told.items() if place} == {
        "step": [0, 5, 10],
        "seconds": pytest.approx([0, 5 * 2 + 4, 10 * 2 + 8]),
        "cpu": pytest.approx([0, 15, 30]),
        "gpu": pytest.approx([0, 28, 56]),
        "images": pytest.approx([0, 5 * 96, 10 * 96]),
    }
    assert math.isnan(gpus({})) and gpus({"hardware": "2 CPU cores (x86_64)"}) == 0


def stopped(folder: Path, **change: Any) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | change))


def crashed(folder: Path) -> None:
    (folder / "flight").mkdir()
    error = {"type": "ValueError", "message": "loss is nan", "traceback": "Traceback ..."}
    record = {
        "step": 3,
        "rank": 0,
        "world_size": 1,
        "written": "2026-01-01T00:00:00+00:00",
        "error": error,
        "steps": [],
    }
    (folder / "flight" / "step_000003.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("finished", "change", "state", "sentence"),
    [
        (True, lambda folder: None, "finished", "All 5 steps are made."),
        (True, lambda folder: stopped(folder, stopped="ocr failed too often"), "stopped", "ocr failed too often"),
        (True, lambda folder: stopped(folder, owed=5), "stopped", "Its last evaluation was left unfinished"),
        (True, lambda folder: (folder / "config.yaml").write_text("max_steps: 9"), "stopped", "saved at step 5"),
        (True, lambda folder: stopped(folder, steps=4), "killed", "left no word"),  # of an earlier finish
        (False, lambda folder: None, "killed", "left no word"),
        (False, crashed, "failed", "ValueError: loss is nan"),
        (
            False,
            lambda folder: [p.unlink() for p in (folder / "metrics.jsonl", folder / "config.yaml")],
            "empty",
            "never",
        ),
    ],
)
def test_a_state_is_told_from_records(tmp_path, finished, change, state, sentence):
    folder = make_run(tmp_path / "run", rows_of(5, every=5), finished=finished)
    change(folder)
    run = opened(folder)
    assert run.state.kind == state and sentence in run.state.sentence


def test_a_run_is_running_as_long_as_its_lock_is_held(tmp_path):
    folder = make_run(tmp_path / "run", rows_of(5, every=5), finished=False)
    (folder / ".lock").touch()
    run = opened(folder)
    assert run.state.kind == "killed"
    with (folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run.glance() and run.state.kind == "running"
    assert run.glance() and run.state.kind == "killed"


def test_a_crash_before_the_newest_start_is_history(tmp_path):
    folder = make_run(tmp_path / "run", rows_of(5, every=5))
    crashed(folder)
    os.utime(folder / "flight" / "step_000003.json", (1, 1))
    assert newest_crash(Folder(tmp_path, ("run",))).kind == "ValueError"
    assert opened(folder).state.kind == "finished"


def test_a_run_grows_while_it_is_watched_and_is_cut_where_it_goes_back(tmp_path):
    folder = make_run(tmp_path / "run", rows_of(20, every=5), finished=False)
    run = opened(folder)
    assert run.curves.curve("grad_norm").steps[-1] == 20
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(lines_of(rows_of(25, every=5)[21:]))
    assert run.glance() and run.step == 25 and list(run.evaluations.steps) == [0, 5, 10, 15, 20, 25]
    (folder / "new").write_text(lines_of(rows_of(12, every=5)))
    (folder / "new").replace(folder / "metrics.jsonl")
    assert run.glance() and run.step == 12 and list(run.evaluations.steps) == [0, 5, 10]
    assert run.sums["time/total"] == pytest.approx(24)


def test_nothing_is_opened_through_a_link_or_outside(tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "metrics.jsonl").write_text('{"step": 7}\n')
    root = tmp_path / "outputs"
    make_run(root / "run", rows_of(5, every=5))
    (root / "linked").symlink_to(secret)
    (root / "run" / "logs").symlink_to(secret)
    (root / "run" / "file").symlink_to(secret / "metrics.jsonl")
    os.mkfifo(root / "run" / "pipe")
    folder = Folder(root)
    for parts in (
        ("linked", "metrics.jsonl"),
        ("run", "logs", "metrics.jsonl"),
        ("run", "file"),
        ("run", "pipe"),
        ("run", "..", "run", "config.yaml"),
        ("run", "/etc/passwd"),
        ("run", ""),
        ("run", "a\0b"),
    ):
        with pytest.raises(OSError, match=r".*"):
            folder.open(*parts)
        assert folder.text(*parts) == ""
    assert list(folder.entries("linked")) == [] == list(folder.entries("run", "logs"))
    with pytest.raises(OSError, match="more than 10 bytes"):
        folder.read("run", "metrics.jsonl", limit=10)
    catalogue = Catalogue(root)
    assert [run.name for run in catalogue.runs()] == ["run"] and catalogue.links == ["linked"]


def test_runs_are_found_below_other_folders_and_what_is_in_a_run_is_its_own(tmp_path):
    for name in ("one", "group/two", "group/deep/three", "group/deep/too/far"):
        make_run(tmp_path / name, rows_of(2, every=2))
    make_run(tmp_path / "one" / "inner", rows_of(2, every=2))
    (tmp_path / "nothing").mkdir()
    assert [run.name for run in Catalogue(tmp_path).runs()] == ["group/deep/three", "group/two", "one"]
    with pytest.raises(ConfigError, match=r"no folder at .*; give the folder that runs are in"):
        Catalogue(tmp_path / "absent")


@pytest.mark.parametrize("damage", ["config.yaml", "summary.json", "metrics.jsonl", "rewards.json"])
@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"[" * 100_000, b"{", b"- a\n", b"null", b""])
def test_a_damaged_file_breaks_no_page(tmp_path, damage, content):
    folder = make_run(tmp_path / "run", rows_of(5, every=5))
    (folder / damage).write_bytes(content)
    assert row_of(opened(folder)).name == "run"


def test_what_rows_name_only_where_it_is_not_0_counts_as_0_elsewhere():
    """The mean of the rows that name it would make one failed step look like many."""
    for rows, mean, low, high in ((4, [0, 6, 0, 0], [0, 6, 0, 0], [0, 6, 0, 0]), (600, [3, 0], [0, 0], [6, 0])):
        curves, values = Curves(), np.full(rows, math.nan)
        values[1] = 6.0
        curves.add(np.arange(1, rows + 1), {"failed/ocr/timeout": values})
        found = curves.counted("failed/ocr/timeout")
        assert found.mean.tolist()[: len(mean)] == mean
        assert (found.low.tolist()[: len(low)], found.high.tolist()[: len(high)]) == (low, high)
    assert curves.counted("nobody") is None


def test_losses_on_held_out_rows_are_drawn_where_no_reward_is_held_out(tmp_path):
    """Of a run that is given images, and of one that reads packs; the table has nothing of them."""
    rows = [
        {"step": step, "loss/sft": 1 / step}
        | ({} if step % 2 else {"heldout/loss": 2 / step, "heldout/ce": 4 / step, "heldout/mse/0.25": 1 / step})
        for step in range(1, 5)
    ]
    run = opened(make_run(tmp_path / "run", rows, finished=False))
    drawn = {chart.title: chart for _, charts in charts_of(run) for chart in charts}
    for title, values in {
        "loss on held-out rows": [1, 0.5],
        "packs: errors on held-out rows": [2, 1],
        "packs: mse on held-out rows by noise level": [0.5, 0.25],
    }.items():
        (series,) = drawn[title].series
        assert (list(series.x), list(series.y)) == ([2, 4], values)
    assert row_of(run).held == {}
