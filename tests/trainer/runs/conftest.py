"""Run folders, the real command that serves them, and a browser, for all tests of the runs page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from benchmarks.run_folders import add_evaluation, add_samples, make_run, rows_of
from tests.support.chromium import CHROMIUM

# A busy machine's Chromium may take seconds to draw.
expect.set_options(timeout=120_000)
Open = Callable[..., Page]
ROOT = Path(__file__).resolve().parents[3]
HOSTILE = "<img src=x onerror=document.title='owned'>"
WORDS = ["CAT", "DOG", "FOX"]


@dataclass(frozen=True)
class Served:
    url: str
    folder: Path


def make_folders(root: Path) -> Path:
    """Two runs that can be compared, one that raised an alarm and crashed, and one whose name is markup."""
    for name, skill, lr in (("first", 1.0, 1e-4), ("second", 0.5, 2e-4)):
        folder = make_run(
            root / name, rows_of(40, skill=skill, every=20), config={"optim": {"lr": lr}, "run_name": name}
        )
        add_evaluation(folder, 0, {"ocr": [0.5, 0.25, 0.0]})
        add_samples(folder, 0, WORDS, [0.5, 0.25, 0.0])
        after = [0.75, 1.0, 0.25] if name == "first" else [0.75, 0.75, None]
        add_evaluation(folder, 40, {"ocr": after})
        add_samples(folder, 40, WORDS, [score or 0.0 for score in after])
    (root / "first" / "report.html").write_text(
        '<title>the report</title><ul class="files"><li><a href="metrics.jsonl">metrics.jsonl</a> every number</li></ul>'
    )
    crashed = make_run(root / "group" / "crashed", rows_of(10, every=5), finished=False)
    rows = [json.loads(line) for line in (crashed / "metrics.jsonl").read_text().splitlines()]
    rows[-1] |= {"alarm/diversity": 1.0, "failed/ocr/timeout": 3, "eval/step": 10}
    (crashed / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    add_evaluation(crashed, 10, {"ocr": [0.5]})
    alarm = {"name": "diversity", "text": "All images of a prompt have become alike."}
    (crashed / "eval" / "step_000010" / "alarms.json").write_text(json.dumps([alarm]))
    (crashed / "logs").mkdir()
    (crashed / "logs" / "ocr.log").write_text(
        "ocr listening\n"
        '{"level": "info", "message": "request", "status": 503, "error_code": "not_ready"}\n'
        '{"level": "warning", "message": "the queue is full"}\n'
        "Killed\n"
    )
    (crashed / "flight").mkdir()
    error = {
        "type": "RewardError",
        "message": f"ocr is gone {HOSTILE}",
        "traceback": "Traceback (most recent call last)",
    }
    told = {"step": 10, "rank": 0, "world_size": 1, "written": "2026-01-01T00:00:00+00:00", "error": error, "steps": []}
    (crashed / "flight" / "step_000010.json").write_text(json.dumps(told))
    make_run(root / HOSTILE.replace("/", ""), rows_of(2, every=2), config={"run_name": HOSTILE})
    (root / "outside").symlink_to("/etc")
    return root


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("runs") / "outputs")


def serving(folder: Path, *flags: str) -> Iterator[Served]:
    """The command as a person starts it, until the test is done; it must end by itself when it is told to."""
    command = [sys.executable, "-m", "trainer", "runs", str(folder), "--port", "0", *flags]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder.parent / "cache")}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield Served(line.rsplit(" ", 1)[1].strip(), folder)
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0


@pytest.fixture(scope="session")
def served(folders: Path) -> Iterator[Served]:
    yield from serving(folders)


# Of a module: only one test module at a time may have a browser.
@pytest.fixture(scope="module")
def browser(chromium: None) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=180_000)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Pages whose console must stay silent."""
    contexts, said = [], []

    def open_page(
        address: str, *, width: int = 1400, dark: bool = False, scripts: bool = True, quiet: bool = True
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(180_000)
        if quiet:  # the browser itself logs every answer that is not 2xx
            page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
