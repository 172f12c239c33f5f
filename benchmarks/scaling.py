"""The same run on 1, 2 and 4 processes under every ZeRO stage: how far the curves are apart, and what a step costs.

    python benchmarks/scaling.py [--ranks 1 2 4] [--stages none zero1 zero2 zero3] [--steps 6]

The quickstart's base model and the rules service, on the CPU (gloo). All runs compute the same numbers up to the
order of float32 sums; it exits with 1 where they do not, or where no step has anything to learn. On one machine's cores more processes are not faster: the times
show the cost of communication and hooks, not scaling.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
STAGES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    # The default keeps parameters below 100,000 numbers whole, which is most of the tiny policy.
    "zero3": {"stage": 3, "stage3_param_persistence_threshold": 0},
}
CURVES = ("grad_norm", "loss/policy", "ratio/mean", "reward/color/mean", "adv/abs_mean", "eval/color")
TOLERANCE = 1e-3


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="Numbers of processes.")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="ZeRO stages.")
    parser.add_argument("--steps", type=int, default=6, help="Training steps of each run.")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "benchmarks" / "scaling.json")
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, _rules_service() as url:
        reference: list[dict[str, Any]] = []
        for stage in args.stages:
            for ranks in args.ranks:
                print(f"{stage} on {ranks}", file=sys.stderr, flush=True)
                curve = _run(Path(name), url, stage, ranks, args.steps)
                reference = reference or _that_learns(curve)
                rows.append({"stage": stage, "ranks": ranks, **_compare(curve, reference)})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    _print(rows)
    return 0 if all(row["largest"] <= TOLERANCE for row in rows) else 1


@contextmanager
def _rules_service() -> Iterator[str]:
    command = [sys.executable, "-m", "services.rules", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "listening on" in line)
        try:
            yield line.rsplit(" ", 1)[1].strip()
        finally:
            process.terminate()
            process.stdout.read()


def _run(folder: Path, url: str, stage: str, ranks: int, steps: int) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl of one run."""
    config = _config(folder, url, stage, ranks, steps)
    path = folder / f"{config['run_name']}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "trainer.processes.launch", "--nproc", str(ranks), "train", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{stage} on {ranks} ranks failed:\n{done.stderr[-4000:]}")
    metrics = folder / "outputs" / config["run_name"] / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def _config(folder: Path, url: str, stage: str, ranks: int, steps: int) -> dict[str, Any]:
    deepspeed = None
    if STAGES[stage] is not None:
        deepspeed = str(folder / f"{stage}.json")
        Path(deepspeed).write_text(json.dumps({"zero_optimization": STAGES[stage]}), encoding="utf-8")
    column = {"service": "rules", "reward": "color_match"}
    return {
        "run_name": f"{stage}_{ranks}",
        "output_dir": str(folder / "outputs"),
        "max_steps": steps,
        "policy": {"type": "tiny", "checkpoint": "assets/quickstart/base.safetensors"},
        "sampling": {"prompts_per_step": 8, "group_size": 4, "micro_batch_size": 4, "num_inference_steps": 6},
        "rewards": {"services": {"rules": {"urls": [url]}}, "columns": {"color": column}},
        "data": {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"color": 1.0}}]},
        "optim": {"lr": 1e-4, "max_grad_norm": 0.01},
        "distributed": {"num_threads": 1, "deepspeed": deepspeed},
        "evaluation": {
            "path": "assets/quickstart/heldout.jsonl",
            "every": 1000,
            "num_inference_steps": 6,
        },
        "logging": {"report_every": 1000, "report_to": [], "progress": False},
    }


def _that_learns(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curve itself.

    Raises:
        SystemExit: a step of it had no gradient, so that all runs would agree on nothing.
    """
    if flat := [row["step"] for row in curve if row["step"] and not row["grad_norm"]]:
        raise SystemExit(f"the gradient of step {flat[0]} is 0: nothing is compared")
    first, last = curve[0]["eval/color"], curve[-1]["eval/color"]
    print(f"held-out colour of the first run: {first:.4f} before, {last:.4f} after", file=sys.stderr)
    return curve


def _compare(curve: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Largest relative difference of each curve, and seconds of the steps after the first two."""
    found: dict[str, Any] = {}
    for key in CURVES:
        pairs = [(row[key], other[key]) for row, other in zip(curve, reference, strict=True) if key in other]
        if not pairs:
            raise SystemExit(f"{key} is in no row: nothing is compared")
        found[key] = max(abs(a - b) / max(abs(b), 1e-3) for a, b in pairs)
    found["largest"] = max(found.values())
    later = [row for row in curve if row["step"] > 2]
    for key in ("time/rollout", "time/update"):
        found[key] = sum(row[key] for row in later) / max(len(later), 1)
    return found


def _print(rows: Sequence[dict[str, Any]]) -> None:
    print(f"| stage | ranks | {' | '.join(CURVES)} | rollout, s | update, s |")
    print("|---" * (len(CURVES) + 4) + "|")
    for row in rows:
        differences = " | ".join(f"{row[key]:.1e}" for key in CURVES)
        print(
            f"| {row['stage']} | {row['ranks']} | {differences} | {row['time/rollout']:.2f} | {row['time/update']:.2f} |"
        )
    print(f"\nLargest relative difference from the first row: {max(row['largest'] for row in rows):.1e}")


if __name__ == "__main__":
    sys.exit(main())
