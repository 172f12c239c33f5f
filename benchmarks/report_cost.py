"""What `python -m trainer report` costs by the length of a run: CPU seconds, and peak memory.

    python benchmarks/report_cost.py --steps 1000 10000 100000
    python benchmarks/report_cost.py --steps 1000 100000 --beside /path/to/another/checkout

With another checkout the two take turns over the same folders, so that their ratio holds on a machine that is not idle.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.run_folders import make_run, rows_of

ROOT = Path(__file__).resolve().parents[1]


def make(run: Path, steps: int) -> None:
    make_run(run, rows_of(steps))


def cost(checkout: Path, run: Path) -> tuple[float, float]:
    """CPU seconds and peak MiB of one build, by the code of a checkout, as a process of its own."""
    before = os.times()
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "report", str(run)], cwd=checkout, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the report of {run} was not built by {checkout}")
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, usage.ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beside", type=Path, default=None, help="another checkout to compare with")
    args = parser.parse_args()
    checkouts = {"here": ROOT} | ({} if args.beside is None else {"beside": args.beside})
    print("| steps | code | CPU s, median | least | most | peak MiB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for steps in args.steps:
            run = Path(folder) / f"{steps}"
            # In a process of its own: what starts a process is counted into its peak, and rows take a gigabyte to make.
            maker = get_context("spawn").Process(target=make, args=(run, steps))
            maker.start()
            maker.join()
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
            for _ in range(args.repeats):
                for name, checkout in checkouts.items():
                    found[name].append(cost(checkout, run))
            for name, costs in found.items():
                seconds, peaks = zip(*costs, strict=True)
                told = [f"{each:.2f}" for each in (statistics.median(seconds), min(seconds), max(seconds))]
                print(f"| {steps} | {name} | {' | '.join(told)} | {max(peaks):.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
