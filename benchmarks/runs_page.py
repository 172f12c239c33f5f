"""The runs page with many long runs: from start to answer, first paint in Chromium, memory, lateness of live updates.

    python benchmarks/runs_page.py
    python benchmarks/runs_page.py --runs 20 --steps 2000 --updates 10 --refreshes 10

makes run folders (17 MB each of 10,000 steps) and a cache of its own in a temporary folder, starts the command on them twice, as a
person does, without and with what the first start has kept, and measures from outside. It prints a table, and exits with 1 where a
goal is missed. Times are of a machine: say which, and whether it was idle. CPU seconds are the server's own.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
WORDS = ["CAT", "DOG", "FOX", "EMU"]
PAINT_MS, LATE_S, GROWTH_MIB = 1000, 1.0, 8.0  # goals
_PAINT = "performance.getEntriesByType('paint').find(each => each.name === 'first-contentful-paint')?.startTime ?? null"
# Asked from outside: the browser's own waiting compiles a string, which the page's policy refuses.
_WATCH = """([run, step]) => {
  const cell = document.querySelector(`[data-run="${run}"] [data-cell=step] span`);
  window.shown = new Promise((resolve) => {
    const look = () => { if (cell.textContent.startsWith(`${step} `)) { observer.disconnect(); resolve(Date.now()); } };
    const observer = new MutationObserver(look);
    observer.observe(cell, { childList: true, characterData: true, subtree: true });
    look();
  });
}"""


@dataclass
class Line:
    """A number that was measured; `goal` is the most it may be, in its own unit; None: none is set."""

    what: str
    value: float
    unit: str
    goal: float | None = None

    @property
    def holds(self) -> bool:
        return self.goal is None or self.value <= self.goal


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
            scores = [min(1.0, 0.3 + step / steps * 0.05 * number + 0.002 * n) for n in range(192)]
            add_evaluation(place, step, {"ocr": scores})
            add_samples(place, step, WORDS, [0.3, 0.4, 0.6, 0.9 if step else 0.1])


@dataclass
class Server:
    """The command, running: where it listens, and the seconds until it did."""

    url: str
    process: psutil.Process
    listening_s: float

    @property
    def cpu_s(self) -> float:
        return float(sum(self.process.cpu_times()[:2]))

    @property
    def mib(self) -> float:
        return float(self.process.memory_info().rss / 2**20)


@contextmanager
def serving(folder: Path, cache: Path) -> Iterator[Server]:
    """The command as a person starts it, with a cache of its own."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "trainer", "runs", str(folder), "--port", "0"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().rsplit(" ", 1)[1].strip()
            yield Server(url, psutil.Process(process.pid), time.perf_counter() - started)
        finally:
            process.terminate()


def opened(browser: Browser, url: str) -> tuple[Page, float]:
    """A page in a browser that knows nothing yet, and its first contentful paint in ms."""
    page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    page.goto(url, timeout=120_000)
    while (paint := page.evaluate(_PAINT)) is None:
        time.sleep(0.01)
    return page, float(paint)


def paints(browser: Browser, url: str, times: int = 5) -> float:
    """The median first paint of an address in ms, each in a new browser context."""
    found = []
    for _ in range(times):
        page, paint = opened(browser, url)
        page.context.close()
        found.append(paint)
    return statistics.median(found)


def read_through(page: Page) -> None:
    """Wait until the page says that nothing is left to be read."""
    while not page.evaluate("document.getElementById('unread').hidden"):
        time.sleep(0.2)


def lateness(page: Page, folder: Path, steps: Iterator[int], times: int) -> list[float]:
    """Seconds from a row being written to the table showing its step."""
    rng, found = random.Random(1), []
    rows = folder / "metrics.jsonl"
    for number in range(times):
        step = next(steps)
        row = training_row(step, rng) | (evaluation_entries(0.9, 0.4) if number % 4 == 0 else {})
        page.evaluate(_WATCH, [folder.name, step])
        with rows.open("a") as file:
            file.write(lines_of([row]))
        written = time.time()
        found.append(float(page.evaluate("window.shown")) / 1000 - written)
        time.sleep(0.1 + 0.4 * rng.random())  # so that writing does not fall in step with looking
    return found


def heap(page: Page) -> tuple[float, int]:
    """MiB of JavaScript and nodes of the document, after what is not used has been given back."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    told = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    session.detach()
    return told["JSHeapUsedSize"] / 2**20, int(told["Nodes"])


def first_start(browser: Browser, folder: Path, cache: Path) -> list[Line]:
    """Nothing was read before."""
    with serving(folder, cache) as server:
        page, paint = opened(browser, server.url)
        lines = [
            Line("first start: until it listens", server.listening_s, "s"),
            Line("first start: first paint of the table, while rows are read", paint, "ms", PAINT_MS),
            Line("first start: memory at first paint", server.mib, "MiB"),
        ]
        most = server.mib
        while not page.evaluate("document.getElementById('unread').hidden"):
            most = max(most, server.mib)
            time.sleep(0.2)
        kept = sum(path.stat().st_size for path in cache.rglob("*.npz"))
        return [
            *lines,
            Line("first start: CPU until all rows are read", server.cpu_s, "s"),
            Line("first start: most memory while reading", most, "MiB"),
            Line("first start: memory when all is read", server.mib, "MiB"),
            Line("what is kept for the next start", kept / 2**20, "MiB"),
        ]


def second_start(browser: Browser, folder: Path, cache: Path, args: argparse.Namespace) -> list[Line]:
    """What the first start has read is kept."""
    with serving(folder, cache) as server:
        page, paint = opened(browser, server.url)
        lines = [
            Line("second start: until it listens", server.listening_s, "s"),
            Line("second start: first paint of the table", paint, "ms", PAINT_MS),
        ]
        read_through(page)
        lines.append(Line("second start: CPU until the table is whole", server.cpu_s, "s"))
        compared = "&".join(f"run=run_{number:03d}" for number in range(min(8, args.runs)))
        for what, path in (
            ("the table", "/"),
            ("a run", "/run/run_001"),
            ("a comparison of 8", f"/compare?{compared}"),
            ("a gallery", "/gallery/run_001"),
        ):
            lines.append(
                Line(f"first paint of {what}, median of 5", paints(browser, server.url + path), "ms", PAINT_MS)
            )
        lines += followed(browser, server, folder, args)
        cpu = server.cpu_s
        time.sleep(10)
        lines.append(Line("CPU of a second in which nothing happens, a page open", (server.cpu_s - cpu) / 10, "s"))
        page.context.close()
        return lines


def followed(browser: Browser, server: Server, folder: Path, args: argparse.Namespace) -> list[Line]:
    """Lateness, and whether memory grows with updates and with refreshes."""
    page, _ = opened(browser, server.url)
    run, _ = opened(browser, f"{server.url}/run/run_000")  # whose curves are drawn again at each row
    steps = iter(range(args.steps + 1, 10**9))
    warm = max(2, args.updates // 5)
    lateness(page, folder / "run_000", steps, warm)  # a page's first updates make what it keeps
    before, (heap_before, nodes_before) = server.mib, heap(run)
    late = lateness(page, folder / "run_000", steps, args.updates)
    after, (heap_after, nodes_after) = server.mib, heap(run)
    lines = [
        Line(f"lateness of {args.updates} live updates, median", statistics.median(late), "s", LATE_S),
        Line("lateness, the most", max(late), "s", LATE_S),
        Line("memory before the updates", before, "MiB"),
        Line("its growth over the updates", after - before, "MiB", GROWTH_MIB),
        Line("the run's page in the browser: growth of its heap", heap_after - heap_before, "MiB", GROWTH_MIB),
        Line("the run's page in the browser: growth of its nodes", nodes_after - nodes_before, "nodes"),
    ]
    page.reload()
    before = server.mib
    for _ in range(args.refreshes):
        page.reload()
        run.reload()
    lines.append(Line(f"growth over {args.refreshes} refreshes of two pages", server.mib - before, "MiB", GROWTH_MIB))
    for each in (page, run):
        each.context.close()
    return lines


def measure(folder: Path, cache: Path, args: argparse.Namespace) -> list[Line]:
    with sync_playwright() as playwright:
        browser: Any = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        lines = first_start(browser, folder, cache) + second_start(browser, folder, cache, args)
        browser.close()
    return lines


def show(lines: list[Line]) -> None:
    print("| what | measured | goal | holds |\n|---|---|---|---|")
    for line in lines:
        goal = "" if line.goal is None else f"{line.goal:g} {line.unit}"
        told = f"{line.value:.0f}" if line.unit in ("ms", "nodes") else f"{line.value:.3g}"
        print(
            f"| {line.what} | {told} {line.unit} | {goal} | {'' if line.goal is None else 'yes' if line.holds else 'NO'} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--refreshes", type=int, default=50)
    parser.add_argument(
        "--folder", type=Path, help="Make the run folders there, and leave them; default: a temporary one."
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="runs_page_") as temporary:
        folder = args.folder or Path(temporary) / "outputs"
        make(folder, args.runs, args.steps)
        size = sum(path.stat().st_size for path in folder.glob("*/metrics.jsonl"))
        load = os.getloadavg()[0]
        print(
            f"{args.runs} runs of {args.steps} steps, {size / 1e9:.2f} GB of rows; {os.cpu_count()} cores, load {load:.1f} "
            "before, the browser on the same machine\n",
            flush=True,
        )
        lines = measure(folder, Path(temporary) / "cache", args)
    show(lines)
    return int(not all(line.holds for line in lines))


if __name__ == "__main__":
    sys.exit(main())
