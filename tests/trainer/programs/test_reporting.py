"""Pages of a run that goes on: beside the training, one at a time, for a bounded share, and the last one whole."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.run_folders import make_run, rows_of
from trainer.programs import reporting
from trainer.programs.reporting import ReportBuilder

Builder = Callable[..., ReportBuilder]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "run", rows_of(3))
    (folder / "logs").mkdir()
    return folder


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def builder(run: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Builder]:
    """Makes the builder of a run whose pages are built by a program of the test's, which gets the folder as its argument."""
    made: list[ReportBuilder] = []

    def make(program: str, *, is_main: bool = True) -> ReportBuilder:
        monkeypatch.setattr(reporting, "COMMAND", (sys.executable, "-I", "-S", "-c", program))
        made.append(ReportBuilder(run, notes.append, is_main=is_main))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


BEGUN = "import sys, pathlib; folder = pathlib.Path(sys.argv[1]); file = (folder / 'begun').open('a'); file.write('x'); file.close()\n"


def begun(run: Path) -> int:
    return len((run / "begun").read_text()) if (run / "begun").exists() else 0


def test_the_last_page_replaces_what_is_being_built_and_leaves_nothing_of_it(run: Path, builder: Builder) -> None:
    hangs = builder(BEGUN + "(folder / '.report.html.7.writing').touch()\nimport time; time.sleep(600)")
    hangs.begin()
    wait_until((run / ".report.html.7.writing").exists)
    hangs.finish()
    assert "finished, 3 steps" in (run / "report.html").read_text(encoding="utf-8")
    assert not list(run.glob(".report.html.*")) and not any(thread.name == "report" for thread in threading.enumerate())


def test_one_is_built_at_a_time_and_the_next_when_the_last_was_cheap_enough(
    run: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = builder(BEGUN + "import time; until = time.process_time() + 0.05\nwhile time.process_time() < until: pass")
    for _ in range(3):  # while the first is being built
        pages.begin()
    wait_until(lambda: begun(run) == 1 and not pages.is_building)
    pages.begin()  # 0.05 CPU seconds are two per cent of 2.5 s, which have not passed
    assert not pages.is_building
    monkeypatch.setattr(reporting, "SHARE", 1e6)
    pages.begin()
    wait_until(lambda: begun(run) == 2 and not pages.is_building)


def test_what_goes_wrong_is_said_and_ends_nothing(
    run: Path, builder: Builder, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = builder("raise SystemExit('no space left')")
    pages.begin()
    wait_until(lambda: bool(notes))
    assert "report.html was not built (exit code 1\n    no space left); nothing else is affected" in notes[0]
    (run / "report.html").mkdir()  # nor can the last one
    pages.finish()
    assert "report.html was not built (ConfigError:" in notes[1]


def test_other_ranks_build_nothing(run: Path, builder: Builder) -> None:
    pages = builder(BEGUN, is_main=False)
    pages.begin()
    pages.finish()
    assert begun(run) == 0 and not (run / "report.html").exists()


@pytest.mark.slow
def test_the_process_is_no_rank_and_imports_no_torch(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    notes: list[str] = []
    pages = ReportBuilder(run, notes.append, is_main=True)
    pages.begin()
    wait_until(lambda: not pages.is_building)
    assert (run / "report.html").exists() and not notes
    code = "import sys, trainer.commands.report, trainer.report; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
