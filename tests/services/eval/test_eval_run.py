"""The commands: a folder judged, stopped, resumed and compared, by the real process against a judge on a socket."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from services.eval.__main__ import main
from services.eval.report import load_results
from services.eval.store import RESULTS, ResultLog, RunFolderError, read_records
from services.kit.testing.scripted_judge import Question, Reply
from tests.support.judges import judging
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[3]
POINTS = {"Testpoints": ["Style", "Attribute - Color"], "Testpoint Description": ["ink", "red"]}


def make_inputs(folder: Path, prompts: int = 3, per_prompt: int = 2, name: str = "{index}_{image}.png") -> list[str]:
    """A prompt file and images that all differ; the flags that name them."""
    (folder / "images").mkdir()
    with (folder / "prompts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "prompt_en", "sub_dims_en"])
        writer.writerows([index, f"prompt number {index}.", json.dumps(POINTS)] for index in range(prompts))
    for index in range(prompts):
        for image in range(per_prompt):
            picture = Image.new("RGB", (16, 12), (index * 20 % 256, image * 60, 90))
            picture.save(folder / "images" / name.format(index=index, image=image))
    return ["--prompts", str(folder / "prompts.csv"), "--images", str(folder / "images"), "--out", str(folder / "run")]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "services.eval", *arguments]


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def call(*arguments: str) -> Done:
    """The command in this process, with what it printed."""
    status, out, errors = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main(arguments)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
    return Done(status, out.getvalue(), errors.getvalue())


def run(judge: Any, *arguments: str, check: bool = True) -> Done:
    url = judge if isinstance(judge, str) else judge.url
    done = call(
        "run", *arguments, "--judge-url", url, "--resamples", "200", "--concurrency", "4", "--image-format", "png"
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def asked(question: Question) -> tuple[str, tuple[int, ...]]:
    """Which prompt and which picture a question is about."""
    number = re.search(r"prompt number (\d+)\.", question.text)
    assert number is not None
    return number[1], question.images[0].convert("RGB").getpixel((0, 0))  # type: ignore[return-value]


def passing(_question: Question) -> Reply:
    return Reply("<analysis>['ink', 'not red']</analysis><score>[1, 0]</score>", delay_s=0.02)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / RESULTS).read_text("utf-8").splitlines()]


def tree(folder: Path) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads((folder / "run" / "table.json").read_text("utf-8"))
    return whole


@pytest.mark.parametrize(
    "name",
    [
        "{index}_{image}.png",
        "{index}.{image}.jpg",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("{index}.{image}.png", "{index}_{image}.webp")),
    ],
)
def test_a_folder_is_judged_and_the_table_written(tmp_path: Path, name: str) -> None:
    flags = make_inputs(tmp_path, name=name)
    with judging(passing, "QwenVL") as judge:
        done = run(judge, *flags)
        assert judge.calls == 6 and 1 < judge.at_once <= 4
    assert Counter(asked(question)[0] for question in judge.questions) == {"0": 2, "1": 2, "2": 2}
    table = tree(tmp_path)
    assert table["images"] == {"asked": 6, "judged": 6} and table["failures"] == {}
    assert table["primary_dimensions"]["Attribute "] == {"correct": 0, "total": 6, "accuracy": 0.0}
    assert table["sub_dimensions"]["Style"] == {"correct": 6, "total": 6, "accuracy": 1.0}
    with (tmp_path / "run" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["name"] == "Overall, mean of primary dimensions" and float(rows[0]["accuracy"]) == 0.5
    assert "50.00" in done.stdout and "only 2 of 10 primary dimensions are asked" in done.stdout
    assert (tmp_path / "run" / "page.html").stat().st_size > 5000
    [first, *_] = lines(tmp_path)
    assert first["verdicts"] == [1, 0] and first["reasons"] == ["ink", "not red"] and "<score>" in first["answer"]


def test_both_readings_are_in_the_table_the_files_and_the_page(tmp_path: Path) -> None:
    """Numbers in quotes and an apostrophe: read here, lost to the benchmark's own tool, whose way the leaderboard counts."""
    flags = make_inputs(tmp_path)

    def behave(question: Question) -> Reply:
        analysis = {"0": "['a', 'b']", "1": "['a', 'b']", "2": "['the cat's hat', 'b']"}[asked(question)[0]]
        scores = "['1', '1']" if asked(question)[0] == "1" else "[1, 1]"
        return Reply(f"<analysis>{analysis}</analysis><score>{scores}</score>")

    with judging(behave, "QwenVL") as judge:
        done = run(judge, *flags)
    table = tree(tmp_path)
    micro = next(row for row in table["rows"] if row["name"] == "Overall, all test points")
    assert (micro["correct"], micro["judged"], micro["accuracy"]) == (12, 12, 1.0)
    assert (micro["official_correct"], micro["official_judged"], micro["official_accuracy"]) == (4, 8, 0.5)
    assert table["leaderboard"] == {"reading": "official", "overall": 0.5, "comparable": False}
    assert {each["accuracy"] for each in table["sub_dimensions"].values()} == {0.5}
    with (tmp_path / "run/table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["accuracy"], row["official_accuracy"]) for row in rows[:2]] == [("1.0", "0.5")] * 2
    assert "official" in done.stdout and "the leaderboard's number is its Overall, mean of primary" in done.stdout
    assert [line.split()[-2:] for line in done.stdout.splitlines() if "all test points" in line] == [["50.00", "8"]]
    page = (tmp_path / "run/page.html").read_text("utf-8")
    assert "Official reading, mean of primary dimensions" in page and "50.0 of 8" not in page and "50.0 of 4" in page


def test_a_finished_run_asks_nothing_again(tmp_path: Path) -> None:
    flags = make_inputs(tmp_path)
    with judging(passing, "QwenVL") as judge:
        run(judge, *flags)
    before = (tmp_path / "run" / RESULTS).read_bytes()
    done = run(f"http://127.0.0.1:{free_port()}", *flags)  # no judge is there, and none is needed
    assert "6 images, 6 judged before" in done.stderr
    assert (tmp_path / "run" / RESULTS).read_bytes() == before


def test_a_run_killed_half_way_goes_on_without_repeating_a_call(tmp_path: Path) -> None:
    """SIGKILL while 4 calls hang. What was answered is on disk and never asked again; what hung is asked once more."""
    flags = make_inputs(tmp_path, prompts=10, per_prompt=4)
    resumed = threading.Event()
    started, answered, lock = Counter[Any](), Counter[Any](), threading.Lock()

    def behave(question: Question) -> Reply:
        with lock:
            started[asked(question)] += 1
            if len(answered) >= 20 and not resumed.is_set():
                return Reply("too late", delay_s=60)
            answered[asked(question)] += 1
        return passing(question)

    with judging(behave, "QwenVL") as judge:
        process = subprocess.Popen(
            command("run", *flags, "--judge-url", judge.url, "--concurrency", "4", "--image-format", "png"),  # type: ignore[attr-defined]
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        results = tmp_path / "run" / RESULTS
        until = time.monotonic() + 60
        while not (results.exists() and results.read_bytes().count(b"\n") == 20 and judge.calls == 24):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        resumed.set()
        done = run(judge, *flags)
    assert "40 images, 20 judged before" in done.stderr
    assert len(answered) == 40 and set(answered.values()) == {1}
    assert judge.calls == 44 and Counter(started.values()) == {1: 36, 2: 4}
    assert len(lines(tmp_path)) == 40 and tree(tmp_path)["images"] == {"asked": 40, "judged": 40}


def test_a_line_that_was_cut_costs_its_own_image_only(tmp_path: Path) -> None:
    flags = make_inputs(tmp_path)
    with judging(passing, "QwenVL") as judge:
        run(judge, *flags)
        path = tmp_path / "run" / RESULTS
        path.write_bytes(path.read_bytes()[:-40])
        done = run(judge, *flags)
        assert judge.calls == 6 + 1
        run(judge, *flags)
        assert judge.calls == 7
    assert "1 cut lines" in done.stderr and tree(tmp_path)["images"]["judged"] == 6


def test_an_image_without_verdicts_is_missing_everywhere_and_asked_again(tmp_path: Path) -> None:
    flags = make_inputs(tmp_path)
    with judging(lambda q: Reply("?") if asked(q)[0] == "1" else passing(q), "QwenVL") as judge:
        done = run(judge, *flags)
        assert judge.calls == 4 + 2 * 3
    assert "2 images without verdicts (2 parse_error)" in done.stderr
    table = tree(tmp_path)
    assert table["images"] == {"asked": 6, "judged": 4} and table["failures"] == {"parse_error": 2}
    assert [each["index"] for each in table["failed_images"]] == [1, 1]
    style = next(row for row in table["rows"] if row["name"] == "Style")
    assert (style["correct"], style["judged"], style["asked"], style["accuracy"]) == (4, 4, 6, 1.0)
    assert table["sub_dimensions"]["Style"]["total"] == 4
    with judging(passing, "QwenVL") as judge:
        run(judge, *flags)
        assert {asked(question)[0] for question in judge.questions} == {"1"} and judge.calls == 2
    assert tree(tmp_path)["images"]["judged"] == 6


@pytest.mark.parametrize("change", ["image", "prompt", "definitions", "model"])
def test_what_has_changed_is_judged_anew(tmp_path: Path, change: str) -> None:
    flags = make_inputs(tmp_path)
    with judging(passing, "QwenVL") as judge:
        run(judge, *flags)
    model, more, expected = "QwenVL", [], 6
    if change == "image":
        Image.new("RGB", (9, 9), "white").save(tmp_path / "images" / "1_0.png")
        expected = 1
    elif change == "prompt":
        path = tmp_path / "prompts.csv"
        path.write_text(path.read_text().replace("number 2.", "number 2. again"))
        expected = 2
    elif change == "definitions":
        template = tmp_path / "t.txt"
        template.write_text("prompt number 0. {prompt} {testpoint} {test_explanation}")
        more = ["--template-en", str(template)]
    else:
        model, more = "other", ["--model", "other"]
    with judging(lambda _question: Reply("<analysis>['a', 'b']</analysis><score>[0, 0]</score>"), model) as judge:
        run(judge, *flags, *more)
        assert judge.calls == expected
    assert tree(tmp_path)["sub_dimensions"]["Style"]["correct"] == 6 - expected


def test_a_judge_that_restarts_costs_nothing(tmp_path: Path) -> None:
    flags, port = make_inputs(tmp_path, prompts=5, per_prompt=4), free_port()
    hang = threading.Event()

    def behave(question: Question) -> Reply:
        return Reply("", status=503) if hang.is_set() else passing(question)

    with judging(behave, "QwenVL", port=port) as judge:
        process = subprocess.Popen(
            command("run", *flags, "--judge-url", judge.url, "--concurrency", "2", "--attempts", "20"),  # type: ignore[attr-defined]
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while judge.calls < 5:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.01)
        hang.set()
    time.sleep(0.3)
    hang.clear()
    with judging(behave, "QwenVL", port=port):
        assert process.wait(60) == 0
    assert tree(tmp_path)["images"] == {"asked": 20, "judged": 20}


def test_a_judge_that_does_not_come_back_ends_the_run_and_marks_no_image(tmp_path: Path) -> None:
    flags, port = make_inputs(tmp_path, prompts=5, per_prompt=4), free_port()
    judge = judging(lambda q: passing(q) if asked(q)[0] == "0" else Reply("", delay_s=60), "QwenVL", port=port)
    with judge as asking:

        def end_the_judge() -> None:
            """Once the first four are judged and kept; the fifth would wait for a minute."""
            results, until = tmp_path / "run" / RESULTS, time.monotonic() + 60
            while asking.calls < 5 or not results.exists() or results.read_bytes().count(b"\n") < 4:
                assert time.monotonic() < until
                time.sleep(0.01)
            judge.__exit__(None, None, None)

        killer = threading.Thread(target=end_the_judge)
        killer.start()
        done = run(asking, *flags, "--image-timeout-s", "4", check=False)
        killer.join()
    assert done.returncode == 1 and "does not answer" in done.stderr and "goes on from here" in done.stderr
    assert tree(tmp_path)["images"]["judged"] == 4 and tree(tmp_path)["failures"] == {"not_asked_yet": 16}


def test_a_full_disk_ends_the_run_and_the_rest_is_judged_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, left, real = make_inputs(tmp_path), iter(range(3)), os.fsync

    def fsync(number: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr("services.eval.store.os.fsync", fsync)
    with judging(passing, "QwenVL") as judge:
        done = run(judge, *flags, check=False)
        assert done.returncode == 1 and "No space left on device" in done.stderr
        monkeypatch.undo()
        run(judge, *flags)
    assert tree(tmp_path)["images"] == {"asked": 6, "judged": 6}


def test_a_dead_engine_behind_a_living_server_ends_the_run_and_marks_no_image(tmp_path: Path) -> None:
    flags = make_inputs(tmp_path)
    with judging(lambda _question: Reply("EngineDeadError", status=500), "QwenVL") as judge:
        done = run(judge, *flags, check=False)
    assert done.returncode == 1 and "up and answers no call" in done.stderr and "goes on from here" in done.stderr
    assert read_records(tmp_path / "run") == ({}, 0)


def test_a_picture_that_breaks_every_call_ends_no_run(tmp_path: Path) -> None:
    flags = make_inputs(tmp_path, prompts=2, per_prompt=1)

    def behave(question: Question) -> Reply:
        return Reply("no such picture", status=500) if "prompt number 0." in question.text else passing(question)

    with judging(behave, "QwenVL") as judge:
        done = run(judge, *flags)
    assert tree(tmp_path)["images"] == {"asked": 2, "judged": 1}
    assert "1 images without verdicts (1 upstream)" in done.stderr


def test_ctrl_c_keeps_what_was_judged_and_writes_the_table(tmp_path: Path) -> None:
    flags = make_inputs(tmp_path)
    with judging(lambda q: passing(q) if asked(q)[0] == "0" else Reply("", delay_s=60), "QwenVL") as judge:
        argv = command("run", *flags, "--judge-url", judge.url, "--image-format", "png")  # type: ignore[attr-defined]
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            try:
                results = tmp_path / "run" / RESULTS
                until = time.monotonic() + 60
                while not (results.exists() and results.read_bytes().count(b"\n") == 2):
                    assert time.monotonic() < until and process.poll() is None
                    time.sleep(0.02)
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=30)
            finally:
                process.kill()
    assert process.returncode == 130 and "the same command goes on from here" in errors and "Traceback" not in errors
    assert tree(tmp_path)["images"] == {"asked": 6, "judged": 2} and tree(tmp_path)["failures"] == {"not_asked_yet": 4}


def test_what_does_not_fit_together_is_said(tmp_path: Path) -> None:
    flags = make_inputs(tmp_path, prompts=4)
    images = tmp_path / "images"
    (images / "0_1.png").unlink()
    for image in (0, 1):
        (images / f"1_{image}.png").rename(images / f"9_{image}.png")
    (images / "2_0.png").write_bytes((images / "2_0.png").read_bytes()[:40])
    (images / "notes.txt").write_text("x")
    path = tmp_path / "prompts.csv"
    path.write_text(path.read_text() + "7,broken,{\n")
    with judging(passing, "QwenVL") as judge:
        done = run(judge, *flags)
        assert judge.calls == 4
    for words in (
        "row 5: sub_dims: is not JSON",
        "1 rows of the prompt file were skipped",
        "1 files are not named like images, such as notes.txt",
        "2 images belong to no good row",
        "1 of 4 prompts have no image",
        "1 prompts have fewer than 2 images",
    ):
        assert words in done.stderr
    table = tree(tmp_path)
    assert table["failures"] == {"bad_input": 1} and "2_0.png: not a readable" in table["failed_images"][0]["message"]
    assert len(table["notes"]) == 6


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "images" / "0_0.jpg").write_bytes(b""), "are both image 0 of prompt 0: remove one"),
        (lambda folder: (folder / "prompts.csv").unlink(), "prompts.csv cannot be read as CSV"),
        (lambda folder: [path.unlink() for path in (folder / "images").iterdir()], "holds no image named like 0_0.png"),
        (
            lambda folder: [path.rename(path.with_name(f"77{path.name}")) for path in (folder / "images").iterdir()],
            "no image in .* belongs to a prompt",
        ),
    ],
)
def test_inputs_that_cannot_be_used_end_with_a_sentence(tmp_path: Path, damage: Any, words: str) -> None:
    flags = make_inputs(tmp_path)
    damage(tmp_path)
    done = run("http://127.0.0.1:1", *flags, check=False)
    assert done.returncode == 1 and re.search(words, done.stderr)


def test_a_missing_judge_and_a_wrong_model_end_with_the_remedy(tmp_path: Path) -> None:
    flags = make_inputs(tmp_path)
    done = run(f"http://127.0.0.1:{free_port()}", *flags, "--judge-wait-s", "0", check=False)
    assert done.returncode == 1 and "no judge answers at" in done.stderr
    with judging(passing, "another") as judge:
        done = run(judge, *flags, "--judge-wait-s", "0", check=False)
    assert done.returncode == 1 and "serves another, not 'QwenVL'" in done.stderr


def test_a_run_in_which_nothing_was_judged_fails(tmp_path: Path) -> None:
    with judging("?", "QwenVL") as judge:
        done = run(judge, *make_inputs(tmp_path), check=False)
    assert done.returncode == 1 and "6 images without verdicts" in done.stderr
    assert tree(tmp_path)["rows"][0]["accuracy"] is None


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with ResultLog(tmp_path), pytest.raises(RunFolderError, match="another run is writing"):
        ResultLog(tmp_path)
    with ResultLog(tmp_path):
        pass


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "x"}', "\x00" * 9, '{"verdicts": [2]}', '"text"'])
def test_damaged_lines_are_counted_and_skipped(tmp_path: Path, line: str) -> None:
    (tmp_path / RESULTS).write_text(f"{line}\n\n")
    assert read_records(tmp_path) == ({}, 1)


def test_identical_images_of_a_prompt_share_one_call(tmp_path: Path) -> None:
    flags = make_inputs(tmp_path)
    (tmp_path / "images" / "0_1.png").write_bytes((tmp_path / "images" / "0_0.png").read_bytes())
    with judging(passing, "QwenVL") as judge:
        run(judge, *flags)
        assert judge.calls == 5
    assert [(each.index, each.image) for each in load_results(tmp_path / "run").records] == [
        (index, image) for index in range(3) for image in range(2)
    ]


def test_two_runs_are_compared_over_what_both_judged(tmp_path: Path) -> None:
    for name, score in (("a", "[0, 1]"), ("b", "[1, 1]")):
        (tmp_path / name).mkdir()
        flags = make_inputs(tmp_path / name)
        if name == "b":
            (tmp_path / "b" / "images" / "2_1.png").unlink()
            flags += ["--parse-retries", "1"]
        with judging(f"<score>{score}</score>", "QwenVL") as judge:
            run(judge, *flags)
    done = call("compare", str(tmp_path / "a/run"), str(tmp_path / "b/run"), "--resamples", "200")
    assert re.search(r"Style +0\.00 +100\.00 +\+100\.00 +\+100\.00 to \+100\.00 +5", done.stdout)
    assert re.search(r"Attribute - Color +100\.00 +100\.00 +\+0\.00", done.stdout)
    assert "5 images judged in both, of 6 in A and 5 in B" in done.stdout
    assert "the method differs" in done.stderr and "parse_retries=1" in done.stderr


def test_the_table_is_written_again_from_the_folder_alone(tmp_path: Path) -> None:
    flags = make_inputs(tmp_path)
    with judging(passing, "QwenVL") as judge:
        run(judge, *flags)
    before = tree(tmp_path)
    for name in ("table.json", "table.csv", "page.html"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "prompts.csv").unlink()
    done = call("table", str(tmp_path / "run"), "--resamples", "200")
    assert "Overall, mean of primary dimensions" in done.stdout and tree(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["table", "missing"], 1, r"missing holds no run \(run.json"),
        (["compare", "missing", "other"], 1, "missing holds no run"),
        (["judge"], 1, "no command 'judge'"),
        (["run"], 2, "--prompts"),
        (["run", "--help"], 0, "--image-timeout-s"),
        (["compare", "--help"], 0, "Folder of the first run"),
        (["--help"], 0, "compare A B"),
        (["serve", "--help"], 0, "--judge-url"),
        (["--judge-url", "ftp://x"], 2, "--judge-url"),
        (["--extra-body", "[]"], 2, "extra_body must be a JSON object"),
    ],
)
def test_command_lines_are_answered(arguments: list[str], status: int, words: str) -> None:
    done = call(*arguments)
    assert done.returncode == status and re.search(words, done.stdout + done.stderr), done.stdout + done.stderr
