"""What reward latency costs a real training step, on-policy and one step off-policy.

    python benchmarks/pipeline_overlap.py
    python benchmarks/pipeline_overlap.py --latencies-ms 0 200 --rounds 20

The quickstart's policy trains against a service in a process of its own that answers every request a set time after it
came, and computes nothing. On-policy, a step may grow by the latency of its last micro-batch, which nothing can hide,
and 2 %; with `pipeline: one_step_off`, `reward_wait_share` must stay below 2 % while the latency is below a step's time.

On-policy, one run meets all the latencies, one after the other, step by step, so a machine that changes its speed changes
all of them, and the growth is the median difference to the calm step of the same round. One step off-policy, each latency
has a run: it is the share within it that counts. The first round is left out. Exits with 1 when a promise does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import rewards_tree, turning_service, write_results

ROOT = Path(__file__).resolve().parents[1]
MOST_GROWTH, MOST_WAIT = 0.02, 0.02
MICRO_BATCHES = 8  # of a step: the quickstart's 96 images by 12
CANARIES = 1  # scoring requests before the first step; `check` notices when they become more


def run(latencies_ms: Sequence[float], pipeline: str, steps: int, threads: int, folder: Path) -> list[dict[str, Any]]:
    """Metrics of the steps of one training run; step s meets latency (s - 1) % len(latencies_ms)."""
    name = f"{pipeline}_{latencies_ms[0]:g}"
    with turning_service(latencies_ms, turn=MICRO_BATCHES, skip=CANARIES) as url:
        overrides = {
            "run_name": name,
            "output_dir": str(folder),
            "max_steps": steps,
            "rewards": {"launch": "none", **rewards_tree({"waiting": url})},
            "data.train.0.rewards": {"waiting": 1.0},
            "sampling.pipeline": pipeline,
            "evaluation": {},
            "checkpoint.save_every": 1_000_000,
            "logging": {"report_to": [], "progress": False, "report_every": 1_000_000},
        }
        command = [sys.executable, "-m", "trainer", "train", "configs/quickstart.yaml"]
        command += [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, cwd=ROOT, check=True, env=environment, stderr=subprocess.DEVNULL)
    lines = (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["step"]]
    check(rows, latencies_ms)
    return rows


def check(rows: list[dict[str, Any]], latencies_ms: Sequence[float]) -> None:
    """Every request of a step must have met the step's own latency.

    Raises:
        SystemExit: one did not, so the rows would be told under the wrong latency.
    """
    for row in rows:
        wanted, met = latencies_ms[(row["step"] - 1) % len(latencies_ms)], row["latency_ms/waiting/p50"]
        nearest = min(latencies_ms, key=lambda latency_ms: abs(latency_ms - met))
        of_another = wanted < max(latencies_ms) <= row["latency_ms/waiting/max"]
        if nearest != wanted or of_another:
            raise SystemExit(
                f"step {row['step']} met latencies of {met:.0f} ms and others instead of {wanted:g}: see CANARIES"
            )


def described(rows: list[dict[str, Any]], latency_ms: float, pipeline: str) -> dict[str, Any]:
    """Medians over the rows of one latency."""
    return {
        "latency_ms": latency_ms,
        "pipeline": pipeline,
        "steps": len(rows),
        "step_s": statistics.median(row["time/total"] for row in rows),
        "wait_s": statistics.median(row["time/reward_wait"] for row in rows),
        "last_s": statistics.median(row["wait/last_latency_s"] for row in rows),
        "wait_share": sum(row["time/reward_wait"] for row in rows) / sum(row["time/total"] for row in rows),
    }


def on_policy(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each latency, all of one run."""
    latencies_ms, n = args.latencies_ms, len(args.latencies_ms)
    steps = run(latencies_ms, "on_policy", n * (1 + args.rounds), args.threads, folder)[n:]
    results = []
    for i, latency_ms in enumerate(latencies_ms):
        rows = steps[i::n]
        result = described(rows, latency_ms, "on_policy")
        result["growth_s"] = statistics.median(
            row["time/total"] - calm["time/total"] for row, calm in zip(rows, steps[::n], strict=True)
        )
        most = result["last_s"] + MOST_GROWTH * (result["step_s"] - result["growth_s"])
        result["holds"] = bool(result["growth_s"] <= most)
        results.append(result)
    return results


def one_step_off(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row and a run for each latency."""
    results = []
    for latency_ms in args.latencies_ms:
        # The last step of the pipeline samples nothing ahead, so it is no step like the others.
        rows = run([latency_ms], "one_step_off", args.rounds + 3, args.threads, folder)[2:-1]
        result = described(rows, latency_ms, "one_step_off")
        result["growth_s"] = None
        result["holds"] = bool(result["wait_share"] < MOST_WAIT or latency_ms / 1000 >= result["step_s"])
        results.append(result)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--latencies-ms", type=float, nargs="+", default=[0, 50, 200, 1000], help="The first is the calm one."
    )
    parser.add_argument("--rounds", type=int, default=12, help="Steps of each latency.")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; one leaves a core to the service.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/pipeline_overlap.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = on_policy(args, Path(folder)) + one_step_off(args, Path(folder))
    print("| latency ms | pipeline | step s | growth s | wait s | last answer s | reward_wait_share | holds |")
    print("|---|---|---|---|---|---|---|---|")
    for r in results:
        growth = "" if r["growth_s"] is None else f"{r['growth_s']:+.3f}"
        print(
            f"| {r['latency_ms']:g} | {r['pipeline']} | {r['step_s']:.3f} | {growth} | {r['wait_s']:.4f} "
            f"| {r['last_s']:.4f} | {r['wait_share']:.2%} | {'yes' if r['holds'] else 'no'} |"
        )
    write_results(args.out, "pipeline_overlap", results)
    return 0 if all(r["holds"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
