from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.config import LoggingConfig
from trainer.records.progress import Progress, Watched, describe, duration, evaluations, pack
from trainer.records.recorder import Recorder, plain_numbers, write_atomic
from trainer.records.rows import past as rows
from trainer.records.rows.past import cut_rows, remembered
from trainer.records.rows.tail import row_in

ROW = {
    "reward/ocr/mean": 0.871,
    "reward/color/mean": 0.64,
    "grad_norm": 0.5321,
    "reward_wait_share": 0.04,
    "images_per_s": 121.7,
    "failed/ocr/timeout": 2.0,
}


def recorder(run_dir: Path, **changes: Any) -> Recorder:
    settings: dict[str, Any] = {
        "config_yaml": "run_name: test\n",
        "is_main": True,
        "resume_step": None,
        "max_steps": 10,
    }
    names = changes.keys() & LoggingConfig.model_fields
    logging = {"progress": False, "report_to": ()} | {name: changes.pop(name) for name in names}
    return Recorder(run_dir, **(settings | changes), logging=LoggingConfig(**logging))


def steps(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def picture(n: int) -> dict[str, Any]:
    pixels = np.full((4, 6, 3), n, dtype=np.uint8)
    return {
        "id": f"s{n}",
        "prompt_id": f"p{n}",
        "prompt": 'the word "Äß" in red',
        "images": [pixels],
        "scores": {"ocr": float("nan") if n else 0.5, "color": None},
        "read": "AB",
    }


def events(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run_dir / "logs" / "tensorboard"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_rows_are_on_disk_at_once_one_line_each(tmp_path: Path) -> None:
    with recorder(tmp_path / "new" / "run") as record:
        for step in range(3):
            record.record({"step": step, "kl": step / 2})
            lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_bytes()
            assert lines.endswith(b"\n") and lines.count(b"\n") == step + 1


def test_numbers_that_are_not_finite_are_null_and_scalars_are_plain(tmp_path: Path) -> None:
    with recorder(tmp_path) as record:
        record.record(
            {
                "step": 1,
                "kl": float("nan"),
                "ratio/max": float("inf"),
                "lr": np.float32(0.5),
                "grad_norm": torch.tensor(float("-inf")),
                "count": np.int64(3),
            }
        )
        record.write_summary({"eval": {"after": {"ocr": float("nan")}}, "steps": 1, "list": (1.5, float("inf"))})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {
        "step": 1,
        "kl": None,
        "ratio/max": None,
        "lr": 0.5,
        "grad_norm": None,
        "count": 3,
    }
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"eval": {"after": {"ocr": None}}, "steps": 1, "list": [1.5, None]}


def test_resume_cuts_rows_and_samples_after_the_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    with recorder(tmp_path) as record:
        record.save_samples(0, [picture(0)])
        for step in range(6):
            record.record({"step": step, "value": 1 / 3})
        record.save_samples(5, [picture(1)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "torn')
    whole = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)

    with recorder(tmp_path, resume_step=3) as record:
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(whole[:4])
        assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step_000000", "step_000000.json"]
        record.record({"step": 4, "value": 2.0})
    assert steps(tmp_path) == [0, 1, 2, 3, 4]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for line in path.read_bytes().split(b"\n") if (row := row_in(line)) is not None]


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_the_cut_is_found_from_the_end_whatever_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Of all files of five lines or less, at each step: what stays is what a reader of the whole file keeps, to the byte."""
    monkeypatch.setattr(rows, "_BLOCK", block)
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 0, "a": "\u2028 \x85"}', '{"step": 1, "b": 1e-05}', "", '{"step": 2}', '{"step": 3, "to']
    for count in range(len(lines) + 1):
        for end in ("\n", ""):
            for last in range(-1, 4):
                path.write_text("\n".join(lines[:count]) + end if count else "", encoding="utf-8")
                kept = [row for row in rows_of(path) if row["step"] <= last]
                before = path.read_bytes()
                cut_rows(path, last)
                after = path.read_bytes()
                assert rows_of(path) == kept and (not kept or after.endswith(b"\n"))
                assert before.startswith(after.removesuffix(b"\n")) and (kept or not after)
                assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]
    cut_rows(tmp_path / "none.jsonl", 3)
    assert (tmp_path / "none.jsonl").read_bytes() == b""


def test_only_the_rows_that_go_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1000)))
    parsed: list[bytes] = []
    row_of = rows.row_in
    monkeypatch.setattr(rows, "row_in", lambda line: parsed.append(line) or row_of(line))
    cut_rows(path, 996)
    assert len(parsed) == 4 and len(path.read_bytes().splitlines()) == 997


def test_a_long_run_goes_on_from_its_first_and_newest_rows_and_its_last_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    made = [{"step": step} | ({"eval/ocr": 0.5} if step in (0, 40) else {}) for step in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    found = remembered(path, first=3, newest=10)
    assert (found.first, found.newest) == (made[:3], [made[40], *made[90:]])
    assert remembered(path, first=3, newest=70) == rows.Past(made[:3], made[30:])
    assert remembered(path, first=3, newest=100) == rows.Past([], made)


def test_a_silence_is_counted_from_the_rows_that_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first rows and the newest ones nobody has looked."""
    monkeypatch.setattr(rows, "_NEWEST", 8)
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "grad_norm": 0}}\n' for step in range(100)))
    with recorder(tmp_path, resume_step=99) as record:
        silence = record._silence._running["gradient"]
        assert (silence.first, silence.last) == (92, 99)


def test_a_new_start_in_an_old_folder_begins_with_an_empty_file(tmp_path: Path) -> None:
    with recorder(tmp_path) as record:
        record.record({"step": 0})
        record.record({"step": 1})
        record.save_samples(0, [picture(0)])
    with recorder(tmp_path) as record:
        record.record({"step": 0})
        assert not list((tmp_path / "samples").iterdir())
    assert steps(tmp_path) == [0]


def test_the_cut_is_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill during the cut leaves the old file; nothing in between is ever seen."""
    with recorder(tmp_path) as record:
        for step in range(4):
            record.record({"step": step})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(self: Path, target: Path) -> Path:
        if target.name == "metrics.jsonl":
            raise KeyboardInterrupt
        return Path(os.rename(self, target) or target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path, resume_step=1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logs", "metrics.jsonl"]


def test_a_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from trainer.records.recorder import Recorder\n"
        "from trainer.config import LoggingConfig\n"
        "r = Recorder(Path(sys.argv[1]), config_yaml='', is_main=True, resume_step=None, max_steps=9,"
        " logging=LoggingConfig(progress=False, report_to=()))\n"
        "for step in range(5): r.record({'step': step, 'pad': 1.0})\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert steps(tmp_path) == [0, 1, 2, 3, 4]


def test_samples_are_pictures_and_a_list(tmp_path: Path) -> None:
    with recorder(tmp_path) as record:
        record.save_samples(25, [picture(0), picture(7), picture(0) | {"images": [], "read": None}])
        record.save_samples(26, [])
    listing = json.loads((tmp_path / "samples" / "step_000025.json").read_text())
    assert listing[1] == {
        "id": "s7",
        "prompt_id": "p7",
        "prompt": 'the word "Äß" in red',
        "scores": {"ocr": None, "color": None},
        "read": "AB",
        "image": "samples/step_000025/1.png",
    }
    assert listing[0]["scores"] == {"ocr": 0.5, "color": None}
    assert listing[2]["image"] is None
    with Image.open(tmp_path / listing[1]["image"]) as image:
        assert image.size == (6, 4)
        assert image.convert("RGB").getpixel((0, 0)) == (7, 7, 7)
    assert not (tmp_path / "samples" / "step_000026.json").exists()


def test_saving_samples_again_replaces_them(tmp_path: Path) -> None:
    with recorder(tmp_path) as record:
        record.save_samples(1, [picture(0), picture(1)])
        record.save_samples(1, [picture(2)])
    assert [p.name for p in (tmp_path / "samples" / "step_000001").iterdir()] == ["0.png"]
    assert len(json.loads((tmp_path / "samples" / "step_000001.json").read_text())) == 1


def test_tensorboard_holds_the_numbers_and_forgets_what_is_made_again(tmp_path: Path) -> None:
    with recorder(tmp_path, report_to=("tensorboard",)) as record:
        for step in range(5):
            record.record({"step": step, "kl": float(step), "lr": float("nan")})
    with recorder(tmp_path, report_to=("tensorboard",), resume_step=2) as record:
        record.record({"step": 3, "kl": 30.0})
    assert events(tmp_path, "kl") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]
    with pytest.raises(KeyError):
        events(tmp_path, "lr")


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with recorder(tmp_path / "run", is_main=False, progress=True, report_to=("tensorboard",)) as record:
        record.record({"step": 0, "kl": 0.0})
        record.save_samples(0, [picture(0)])
        record.write_summary({"steps": 0})
        record.note("nothing")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_write_atomic_leaves_no_temporary_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_plain_numbers_keeps_texts_and_truth_values() -> None:
    assert plain_numbers({"a": [True, "x", None, np.bool_(False)]}) == {"a": [True, "x", None, False]}


def test_lines_carry_the_numbers_that_matter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with recorder(tmp_path, progress=True) as record:
        record.record({"step": 0, "eval/ocr": 0.678, "eval/ocr/valid_share": 1.0})
        record.record({"step": 1, **ROW})
        record.note("half way")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "step 0/10  eval ocr 0.678"
    assert re.fullmatch(
        r"step 1/10  ETA \d+ s  reward ocr 0.871 color 0.640  eval ocr 0.678  grad 0.532  wait 4%  122 img/s  failed 2",
        second,
    )
    assert third == "half way"


def test_an_evaluation_is_shown_alone_until_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    """`final_rewards` are asked for before the first step and after the last: between them their first value is no news."""
    progress = Progress(4, shown=True)
    progress.show({"step": 0, "eval/ocr": 0.5, "eval/other": 0.4})
    progress.show({"step": 1, "grad_norm": 1.0})
    progress.show({"step": 2, "eval/ocr": 0.6, "eval/ocr/low": 0.5, "eval/step": 1.0})
    progress.show({"step": 3, "eval/ocr": None, "kl": 1.0})
    progress.show({"step": 4, "eval/ocr": 0.7, "eval/other": 0.8})
    shown = [re.sub(r"  ETA \d+ s", "", line) for line in capsys.readouterr().err.splitlines()]
    assert shown == [
        "step 0/4  eval ocr 0.500 other 0.400",
        "step 1/4  eval ocr 0.500 other 0.400  grad 1.000",
        "step 2/4  eval ocr 0.600",
        "step 3/4  eval ocr 0.600",
        "step 4/4  eval ocr 0.700 other 0.800",
    ]


def test_sets_with_a_name_are_shown_too() -> None:
    row = {"eval/ocr": 0.5, "eval/step": 20.0, "eval/bench/overall": 0.3, "eval/bench/answered_share": 1.0}
    row |= {"eval/bench/judge": 0.4, "eval/bench/judge/valid_share": 1.0, "eval/bench/judge/low": 0.3}
    assert evaluations(row) == {"ocr": 0.5, "bench/overall": 0.3, "bench/judge": 0.4}


def test_lines_break_between_parts_and_long_parts_between_pairs() -> None:
    assert pack(["ETA 1 s", "grad 1", "failed 2"], 15, 20) == ["ETA 1 s  grad 1", "failed 2"]
    assert pack(["eval aaaa 0.1 bbbb 0.2 cccc 0.3", "grad 1"], 4, 24) == [
        "",
        "eval aaaa 0.1 bbbb 0.2",
        "eval cccc 0.3  grad 1",
    ]
    assert pack([], 4, 24) == [""]


def screen(output: str, columns: int) -> list[str]:
    """What a terminal of so many columns shows: it knows carriage return, line feed and cursor up, and wraps."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[A|.|\n", output):
        if token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
        elif token == "\x1b[A":
            row = max(row - 1, 0)
        else:
            if column == columns:
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            line = lines[row].ljust(column)
            lines[row], column = line[:column] + token + line[column + 1 :], column + 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]


NAMES = ("ocr", "hpsv2", "unifiedreward_think", "edit_pair", "color", "jpeg_compressibility", "unigenbench", "taste")


@pytest.mark.parametrize("columns", [80, 100])
def test_nothing_is_cut_on_a_real_terminal(columns: int) -> None:
    """Eight rewards, trained on and held out, with failures: every number is on the screen, once."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with os.fdopen(slave, "w") as stream:
        progress = Progress(1200, shown=True, stream=stream)
        progress.show({"step": 0, **{f"eval/{name}": 0.111 for name in NAMES}})
        row = {"step": 7, **{f"reward/{name}/mean": 0.567 for name in NAMES}, "grad_norm": 0.123}
        progress.show(row | {"reward_wait_share": 0.34, "images_per_s": 123.4, "failed/ocr/timeout": 3.0})
        progress.note("a note that stays above")
        progress.close()
        print("after", file=stream, flush=True)
        output = ""
        while not output.endswith("after\r\n"):
            output += os.read(master, 65536).decode()
    os.close(master)
    shown = screen(output, columns)
    assert shown[0] == "a note that stays above" and shown[1].startswith("7/1200 |") and shown[-2:] == ["after", ""]
    told = " ".join(shown)
    for name in NAMES:
        assert told.count(f"{name} 0.567") == told.count(f"{name} 0.111") == 1
    assert "grad 0.123" in told and "wait 34%" in told and "123 img/s" in told and "failed 3" in told


def test_a_terminal_that_is_gone_costs_the_display_alone(tmp_path: Path) -> None:
    """As when an ssh connection breaks: what is written to it is an error from then on."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        progress = Progress(4, shown=True, stream=stream)
        progress.show({"step": 1, "grad_norm": 1.0})
        os.close(master)
        for step in (2, 3):
            progress.show({"step": step, "grad_norm": 1.0})
            progress.note("nobody reads this")
        progress.close()
        assert os.path.samestat(os.fstat(stream.fileno()), os.stat(os.devnull))


def test_without_progress_only_notes_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with recorder(tmp_path) as record:
        record.record({"step": 1, **ROW})
        record.note("saved")
    assert capsys.readouterr().err == "saved\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_carries_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # wide enough for one line
    stream = Terminal()
    progress = Progress(10, shown=True, start=4, stream=stream)
    progress.remember({"step": 0, "eval/ocr": 0.678})
    assert stream.getvalue() == "", "a bar before the first row runs into what services print while they start"
    progress.show({"step": 5, **ROW})
    progress.note("a note")
    progress.show({"step": 6, **ROW})
    progress.close()
    shown = stream.getvalue()
    assert "5/10" in shown and "6/10" in shown
    assert "reward ocr 0.871 color 0.640  eval ocr 0.678  grad 0.532  wait 4%  122 img/s" in shown
    assert "a note\n" in shown


def test_the_time_left_is_taken_from_this_starts_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0, 106.0])
    monkeypatch.setattr("trainer.records.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    progress = Progress(50, shown=True, start=40, stream=stream)
    for step in (41, 42, 43):
        progress.show({"step": step, "grad_norm": 1.0})
    assert stream.getvalue().splitlines() == [
        "step 41/50  grad 1.000",
        "step 42/50  ETA 16 s  grad 1.000",  # 2 s a step, 8 left
        "step 43/50  ETA 21 s  grad 1.000",  # 3 s a step, 7 left
    ]


def test_what_a_row_lacks_is_left_out() -> None:
    assert describe({"step": 1, "reward/ocr/mean": None, "grad_norm": None}, {}, None) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (7800, "2 h 10 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_takes_long_says_how_far_it_is():
    stream = io.StringIO()
    items = Watched("abc", "reading the prompts", shown=True, every_s=0.0, stream=stream)
    assert list(items) == ["a", "b", "c"] and len(items) == 3 and items[1] == "b"
    assert stream.getvalue().splitlines() == [f"reading the prompts: {number} of 3" for number in range(3)]
    assert list(Watched("abc", "reading", shown=False, every_s=0.0, stream=stream)) == ["a", "b", "c"]
    assert list(Watched("abc", "reading", shown=True, stream=stream)) == ["a", "b", "c"]
    assert len(stream.getvalue().splitlines()) == 3, "other ranks, and what is done at once, say nothing"
