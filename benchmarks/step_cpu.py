"""CPU seconds of a training step in two checkouts of this project: a change may not make a step dearer.

    python benchmarks/step_cpu.py --before ../before --after .
    python benchmarks/step_cpu.py --before ../before --after . --pairs 8 --steps 6

The quickstart's own run (policy, prompts, group size and sampler of each checkout's configs/quickstart.yaml) with rewards of
the rules service, which the trainer starts as a child: nothing else needs to run. The two checkouts take turns, and which
one begins a pair alternates. A step is what lies between two calls of AdamW: the end of one update, then sampling, scores and
backward passes of the next. It is measured from outside, by a counter around torch's AdamW, so that both
checkouts are measured alike, whatever their code looks like. CPU time is that of the trainer's process, all its threads;
the service's is not in it. The first interval of a run is left out: it pays for what is imported late.

The ratio after / before is that of a pair's medians; printed are its geometric mean and a 95 % interval over the pairs
(Student's t of the logarithms). Exits with 1 when the whole interval lies above 1 + `--tolerance`. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Student's t at 97.5 % for 1, 2, ... degrees of freedom; beyond the table the normal distribution's is 1 % off.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09)


def overrides(folder: Path, steps: int, threads: int) -> list[str]:
    """What makes the quickstart a short run with one cheap service. Keys that every checkout has."""
    return [
        f"max_steps={steps}",
        f"output_dir={folder}",
        "run_name=step_cpu",
        "rewards.services={rules: {module: rules}}",
        "rewards.columns={color: {service: rules, reward: color_match}, small: {service: rules, "
        "reward: jpeg_compressibility}}",
        "data.train=[{path: assets/quickstart/train.jsonl, rewards: {color: 1.0, small: 0.5}}]",
        "evaluation={}",
        "logging={report_to: [], report_every: 100000}",
        f"distributed.num_threads={threads}",
    ]


def child(checkout: Path, output: Path, steps: int, threads: int) -> None:
    """Train in this process, with the code of `checkout`; write the CPU seconds between optimizer steps as JSON."""
    sys.path.insert(0, str(checkout))
    import torch

    stamps: list[float] = []

    class Stamping(torch.optim.AdamW):
        """AdamW that notes the process's CPU time when it is asked for a step."""

        def step(self, *args: object, **kwargs: object) -> object:
            stamps.append(time.process_time())
            return super().step(*args, **kwargs)  # type: ignore[arg-type]

    torch.optim.AdamW = Stamping  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        recipe = str(checkout / "configs" / "quickstart.yaml")
        sys.argv = ["trainer", "train", recipe, *overrides(Path(folder), steps, threads)]
        try:
            runpy.run_module("trainer", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                raise
    output.write_text(json.dumps([later - earlier for earlier, later in itertools.pairwise(stamps)]))


def measure(checkout: Path, steps: int, threads: int) -> list[float]:
    """CPU seconds of each step of one run, the first left out."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "steps.json"
        arguments = [
            "--child",
            str(checkout),
            "--output",
            str(output),
            "--steps",
            str(steps),
            "--threads",
            str(threads),
        ]
        # -P: neither this folder nor the current one is on the path, so the child imports the checkout and nothing else.
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).resolve()), *arguments],
            cwd=checkout,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"the run in {checkout} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        found: list[float] = json.loads(output.read_text())
    if len(found) != steps - 1:
        raise SystemExit(
            f"{checkout}: {len(found) + 1} optimizer steps in {steps} training steps; it should be one each"
        )
    return found[1:]


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean of the ratios, and the two ends of its 95 % interval; of a single one there is no interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), 0.0, math.inf
    t = _T[len(logs) - 2] if len(logs) - 2 < len(_T) else 1.98
    half = t * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--before", type=Path, help="A checkout of the code before.")
    parser.add_argument("--after", type=Path, help="A checkout of the code after.")
    parser.add_argument("--pairs", type=int, default=4, help="Runs of each checkout.")
    parser.add_argument("--steps", type=int, default=6, help="Training steps of a run; the first two are not counted.")
    parser.add_argument("--threads", type=int, default=1, help="Torch's threads; one is the steadiest.")
    parser.add_argument("--tolerance", type=float, default=0.02, help="How much dearer a step may be.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/step_cpu.json"))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.output, args.steps, args.threads)
        return 0
    if args.before is None or args.after is None or args.pairs < 1 or args.steps < 3:
        parser.error("give --before and --after, at least 1 pair and at least 3 steps")
    checkouts = {"before": args.before.resolve(), "after": args.after.resolve()}
    pairs: list[dict[str, list[float]]] = []
    print("| pair | before s/step | after s/step | after / before |\n|---|---|---|---|")
    for number in range(args.pairs):
        order = ["before", "after"] if number % 2 == 0 else ["after", "before"]
        pair = {side: measure(checkouts[side], args.steps, args.threads) for side in order}
        pairs.append(pair)
        before, after = statistics.median(pair["before"]), statistics.median(pair["after"])
        print(f"| {number + 1} | {before:.3f} | {after:.3f} | {after / before:.4f} |", flush=True)
    ratios = [statistics.median(pair["after"]) / statistics.median(pair["before"]) for pair in pairs]
    mean, low, high = interval(ratios)
    for side in ("before", "after"):
        print(f"{side}: {statistics.median([s for pair in pairs for s in pair[side]]):.3f} CPU s a step")
    print(f"after / before: {mean:.4f} (95 % interval {low:.4f} to {high:.4f}, {len(pairs)} pairs)")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"pairs": pairs, "ratio": mean, "low": low, "high": high}, indent=1) + "\n")
    return int(low > 1 + args.tolerance)


if __name__ == "__main__":
    raise SystemExit(main())
