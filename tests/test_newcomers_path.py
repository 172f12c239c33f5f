"""docs/first_hour.md, as a newcomer would follow it: its commands and its file in a clone, the comparison in a browser."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.support.chromium import CHROMIUM
from tests.support.documents import ROOT, Block, blocks_of

BLOCKS = blocks_of(ROOT / "docs" / "first_hour.md")
PARTS = ("A first curve", "A reward of your own in the run", "Two runs compared")
# Two steps, and all the time that a busy machine's services need.
SHORT = (
    "max_steps=2",
    "evaluation.every=2",
    "evaluation.final_rewards=[]",
    "rewards.ready_timeout_s=900",
    "rewards.services.ocr.timeout_s=600",
    "rewards.services.rules.timeout_s=600",
)


def part_of(block: Block) -> str:
    """The section that a block is in."""
    before = (ROOT / block.page).read_text(encoding="utf-8").splitlines()[: block.line]
    return [line.removeprefix("## ") for line in before if line.startswith("## ")][-1]


def commands(part: str) -> list[str]:
    return [line for block in BLOCKS if block.language == "bash" and part_of(block) == part for line in block.commands]


def test_it_takes_no_more_than_it_should() -> None:
    """One command to a curve; three, with saving the file, to one's own reward; one to the comparison."""
    files = [block for block in BLOCKS if block.language == "python"]
    assert [part_of(block) for block in files] == [PARTS[1]] and len(files[0].text.splitlines()) <= 10
    assert [len(commands(part)) for part in PARTS] == [1, 1, 1]
    assert "docs/first_hour.md" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.browser
def test_a_newcomer_gets_to_a_comparison(tmp_path: Path) -> None:
    """The commands as they stand on the page, with fewer steps; the environment is the one that is here."""
    clone, environment = tmp_path / "clone", {**os.environ, "VENV": str(ROOT / ".venv"), "OMP_NUM_THREADS": "1"}
    subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(clone)], check=True, timeout=300)
    (file,) = [block for block in BLOCKS if block.language == "python"]
    (clone / "brightness.py").write_text(file.text + "\n", encoding="utf-8")

    for part in PARTS[:2]:
        (line,) = commands(part)
        done = subprocess.run(
            ["bash", "-c", " ".join([line, *map(shlex.quote, SHORT)])],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (clone / "outputs/quickstart/report.html").exists()
    assert '"reward/brightness/mean"' in (clone / "outputs/bright/metrics.jsonl").read_text()

    (line,) = commands(PARTS[2])
    (clone / ".venv").symlink_to(ROOT / ".venv")
    with subprocess.Popen(
        [*line.split(), "--port", "0"], cwd=clone, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = re.findall(r"http://\S+", server.stdout.readline())[0]
            assert address.endswith("/compare?run=quickstart&run=bright")
            text = httpx.get(address, trust_env=False, timeout=60).text
            assert "rewards.columns.brightness" in text and "eval/ocr" in text
            _look(address)
        finally:
            server.terminate()


def _look(address: str) -> None:
    """In a browser: both runs are named, and have their curves. Without one what the server sent was looked at."""
    if CHROMIUM is None:
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=180_000)
        page = browser.new_page()
        page.goto(address, timeout=180_000)
        expect(page.get_by_role("heading", name="Comparison")).to_be_visible(timeout=120_000)
        chart = page.locator("figure.chart").first
        chart.scroll_into_view_if_needed()  # charts are drawn when they are near
        expect(chart.locator(".u-over")).to_be_visible(timeout=120_000)
        for run in ("quickstart", "bright"):
            expect(page.get_by_role("link", name=run).first).to_be_visible()
        browser.close()
