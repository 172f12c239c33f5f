"""From the command to the first step of the quickstart: seconds, and CPU seconds of the trainer and of its services.

    python benchmarks/first_step.py --repeats 5
    python benchmarks/first_step.py --repeats 5 --beside /path/to/another/checkout

With another checkout the two take turns. Seconds mean something on an idle machine alone; CPU seconds nearly anywhere. The
evaluation before the first step is of `--heldout` prompts, so that the start weighs more than it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("evaluated, s", "first step, s", "trainer, CPU s", "services, CPU s", "whole run, s")


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def row_is_there(run: Path, step: int) -> bool:
    """Whether the row of a step is written."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    return any(json.loads(line)["step"] == step for line in lines)


def start(checkout: Path, recipe: str, heldout: Path, overrides: list[str]) -> tuple[float, ...]:
    """The columns of one start."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "trainer",
            "train",
            recipe,
            f"output_dir={folder}",
            "run_name=run",
            "max_steps=1",
        ]
        command += [f"evaluation.path={heldout}", *overrides]
        began = time.monotonic()
        with psutil.Popen(command, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as trainer:
            seconds = []
            for step in (0, 1):
                while not row_is_there(run, step):
                    if trainer.poll() is not None and not row_is_there(run, step):
                        raise SystemExit(f"{' '.join(command)} in {checkout} ended with exit code {trainer.returncode}")
                    time.sleep(0.02)
                seconds.append(time.monotonic() - began)
            services = 0.0
            for each in trainer.children(recursive=True):
                services += cpu_s(each)
            own = cpu_s(trainer)
            trainer.wait()
        return (*seconds, own, services, time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beside", type=Path, default=None, help="another checkout to compare with")
    parser.add_argument("--recipe", default="configs/quickstart.yaml")
    parser.add_argument("--heldout", type=int, default=8, help="prompts of the evaluation before the first step")
    parser.add_argument("overrides", nargs="*", help="key=value, as of a recipe")
    args = parser.parse_args()
    checkouts = {"here": ROOT} | ({} if args.beside is None else {"beside": args.beside})
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        heldout = Path(folder) / "heldout.jsonl"
        lines = (ROOT / "assets/quickstart/heldout.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        heldout.write_text("".join(lines[: args.heldout]), encoding="utf-8")
        for _ in range(args.repeats):
            for name, checkout in checkouts.items():
                found[name].append(start(checkout, args.recipe, heldout, args.overrides))
    print(f"| code | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for name, starts in found.items():
        print(f"| {name} | {' | '.join(f'{statistics.median(each):.2f}' for each in zip(*starts, strict=True))} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
