"""The runs page with many long runs: from start to answer, first paint in Chromium, memory while all is read, lateness of live updates.

    python benchmarks/runs_page.py --runs 200 --steps 10000

makes the folders (about 17 MB a run of 10,000 steps) under --folder where they are not there yet, starts the command on them
as a person does, and measures from outside. Times are of a machine: say which, and whether it was idle.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.run_folders import (
    add_evaluation,
    add_samples,
    evaluation_entries,
    lines_of,
    make_run,
    rows_of,
    training_row,
)

ROOT = Path(__file__).resolve().parents[1]
BODIES = 10  # runs that are made; the others are copies of them
_PAINTS = "performance.getEntriesByType('paint').find(each => each.name === 'first-contentful-paint')?.startTime"
_ROWS = "document.querySelectorAll('table.runs tbody tr').length"


def make(folder: Path, runs: int, steps: int) -> None:
    """Make what is missing."""
    for number in range(runs):
        place = folder / f"run_{number:03d}"
        if place.exists():
            continue
        first = folder / f"run_{number % BODIES:03d}"
        if first.exists():
            shutil.copytree(first, place)
            continue
        rows = rows_of(steps, seed=number, skill=0.4 + 0.06 * number, every=max(1, steps // 50))
        make_run(place, rows, config={"run_name": place.name, "seed": number})
        for step in (0, steps):
            add_evaluation(
                place, step, {"ocr": [min(1.0, 0.3 + step / steps * 0.05 * number + 0.002 * n) for n in range(192)]}
            )
            add_samples(place, step, ["CAT", "DOG", "FOX", "EMU"], [0.3, 0.4, 0.6, 0.9 if step else 0.1])


def opened(browser: Browser, url: str) -> tuple[Page, float, float]:
    """A page in a browser that knows nothing yet, its first contentful paint in ms, and when it was loaded."""
    page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    started = time.perf_counter()
    page.goto(url, timeout=120_000)
    loaded = 1000 * (time.perf_counter() - started)
    page.wait_for_function(f"{_PAINTS} !== undefined", timeout=60_000)
    return page, float(page.evaluate(_PAINTS)), loaded


def lateness(page: Page, folder: Path, steps: int, times: int) -> list[float]:
    """Seconds from a row being written to the table showing its step."""
    import random

    rng, found = random.Random(1), []
    rows = folder / "metrics.jsonl"
    for number in range(times):
        step = steps + 1 + number
        row = training_row(step, rng) | (evaluation_entries(0.9, 0.4) if number % 4 == 0 else {})
        with rows.open("a") as file:
            file.write(lines_of([row]))
        written = time.perf_counter()
        cell = f"""document.querySelector('[data-run="{folder.name}"] [data-cell=step] span').textContent.startsWith('{step} ')"""
        page.wait_for_function(cell, polling=20, timeout=60_000)
        found.append(time.perf_counter() - written)
        time.sleep(0.37)  # so that writing does not fall in step with looking
    return found


def measure(folder: Path, steps: int) -> dict[str, object]:
    """Start the server on the folders and measure it."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "trainer", "runs", str(folder), "--port", "0"]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
        sync_playwright() as playwright,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().rsplit(" ", 1)[1].strip()
            told: dict[str, object] = {"listening_s": round(time.perf_counter() - started, 2)}
            server = psutil.Process(process.pid)
            launched = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page, paint, loaded = opened(launched, url)
            told |= {
                "first_paint_while_reading_ms": round(paint),
                "loaded_ms": round(loaded),
                "rows": page.evaluate(_ROWS),
            }
            told["rss_at_first_paint_mib"] = _mib(server)
            most = 0.0
            while not page.evaluate("document.getElementById('unread').hidden"):
                most = max(most, _mib(server))
                time.sleep(0.5)
            told |= {"all_read_s": round(time.perf_counter() - started, 1), "rss_most_while_reading_mib": most}
            told |= {"rss_all_read_mib": _mib(server), "cpu_all_read_s": round(sum(server.cpu_times()[:2]), 1)}
            again = [opened(launched, url)[1] for _ in range(3)]
            told["first_paint_ms"] = round(statistics.median(again))
            told["run_page_paint_ms"] = round(opened(launched, f"{url}/run/run_001")[1])
            compared = "&".join(f"run=run_{n:03d}" for n in range(8))
            told["compare_8_paint_ms"] = round(opened(launched, f"{url}/compare?{compared}")[1])
            late = lateness(page, folder / "run_000", steps, 20)
            told |= {"late_median_s": round(statistics.median(late), 3), "late_most_s": round(max(late), 3)}
            before = sum(server.cpu_times()[:2])
            time.sleep(10)
            told["cpu_share_while_idle"] = round((sum(server.cpu_times()[:2]) - before) / 10, 3)
            told["rss_at_the_end_mib"] = _mib(server)
            launched.close()
            return told
        finally:
            process.terminate()


def _mib(process: psutil.Process) -> float:
    return float(round(process.memory_info().rss / 2**20, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "benchmarks" / "runs_page")
    args = parser.parse_args()
    make(args.folder, args.runs, args.steps)
    size = sum(path.stat().st_size for path in args.folder.glob("*/metrics.jsonl"))
    print(json.dumps({"runs": args.runs, "steps": args.steps, "gb_of_rows": round(size / 1e9, 2)}), flush=True)
    print(json.dumps(measure(args.folder, args.steps)))


if __name__ == "__main__":
    main()
