"""How long a training step waits for rewards, against services that only wait.

    python benchmarks/reward_overlap.py
    python benchmarks/reward_overlap.py --latencies-ms 200 --failures 0.05 --steps 20

A step is a fake sampling loop (micro-batches that each take `--sample-ms`, on the CPU with `--compute`) whose images are
submitted as they are done, then `collect`, then a fake update. `wait` is how long `collect` blocked; `last` the latency
of the last micro-batch itself, which nobody can hide; `excess` is what the wait was longer than that, as a share of the
step. Without failures the excess must stay at or below 2 % of the step. With failures every n-th request is answered
503 and retried; `cost` is the mean time of a step relative to the same latency without failures, and must stay below
10 %. Exits with 1 when either does not hold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.client_overhead import make_samples
from benchmarks.waiting_service import rewards_tree, waiting_service, write_results
from trainer.config import RewardsConfig
from trainer.rewards import RewardClient

MOST_EXCESS = 0.02
MOST_COST = 0.10


def work(seconds: float, compute: bool) -> None:
    """Sampling or an update: sleeps as a GPU's host does, or keeps a core busy with matrix products."""
    until = time.perf_counter() + seconds
    if not compute:
        time.sleep(seconds)
        return
    a = torch.ones(256, 256)
    while time.perf_counter() < until:
        a = (a @ a).clamp_(0, 1)


def run_step(client: RewardClient, number: int, args: argparse.Namespace) -> dict[str, float]:
    """Sample, submit, collect, update: seconds of the step, of the wait, and of the last micro-batch's latency."""
    weights = dict.fromkeys(client.config.columns, 1.0)
    started = time.perf_counter()
    batch = client.batch()
    for i in range(args.micro_batches):
        work(args.sample_ms / 1000, args.compute)
        batch.submit(make_samples(args.micro_batch, args.size, weights, f"{number}-{i}"))
    scores = batch.collect()
    work(args.update_ms / 1000, args.compute)
    step_s = time.perf_counter() - started
    if scores.stop_reason:
        raise SystemExit(scores.stop_reason)
    failed = sum(counts.total() for counts in scores.failures.values())
    return {
        "step_s": step_s,
        "wait_s": scores.waited_s,
        "last_s": scores.last_latency_s,
        "excess_share": max(0.0, scores.waited_s - scores.last_latency_s) / step_s,
        "failed": float(failed),
    }


def measure(latency_ms: float, failures: float, args: argparse.Namespace) -> dict[str, Any]:
    """One row: medians over the steps, and the largest excess."""
    every = round(1 / failures) if failures else 1
    names = [f"r{i}" for i in range(args.rewards)]
    with ExitStack() as stack:
        fault = "status_503" if failures else "none"
        urls = {name: stack.enter_context(waiting_service(latency_ms, fault, every)) for name in names}
        config = RewardsConfig.model_validate(rewards_tree(urls))
        client = stack.enter_context(RewardClient(config, urls={name: [url] for name, url in urls.items()}))
        run_step(client, -1, args)
        steps = [run_step(client, number, args) for number in range(args.steps)]
    median = {key: statistics.median(step[key] for step in steps) for key in ("step_s", "wait_s", "last_s")}
    return {
        "latency_ms": latency_ms,
        "failures": failures,
        **median,
        "mean_step_s": statistics.fmean(step["step_s"] for step in steps),
        "wait_share": sum(step["wait_s"] for step in steps) / sum(step["step_s"] for step in steps),
        "excess_share_max": max(step["excess_share"] for step in steps),
        "failed_scores": sum(step["failed"] for step in steps),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--latencies-ms", type=float, nargs="+", default=[0, 50, 200, 1000])
    parser.add_argument("--failures", type=float, nargs="+", default=[0.0, 0.05], help="Shares of requests that fail.")
    parser.add_argument("--rewards", type=int, default=2, help="Services, one reward each.")
    parser.add_argument("--micro-batches", type=int, default=8, help="Micro-batches a step.")
    parser.add_argument("--micro-batch", type=int, default=8, help="Images a micro-batch.")
    parser.add_argument("--size", type=int, default=64, help="Width and height of the images.")
    parser.add_argument("--sample-ms", type=float, default=250, help="Time to sample a micro-batch.")
    parser.add_argument("--update-ms", type=float, default=1000, help="Time of the update.")
    parser.add_argument("--steps", type=int, default=10, help="Steps measured per row, after one that is not.")
    parser.add_argument("--compute", action="store_true", help="Sampling keeps a core busy instead of sleeping.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/reward_overlap.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| latency ms | failures | step s | wait s | last s | wait share | largest excess | cost | lost scores |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for latency_ms in args.latencies_ms:
        calm_s: float | None = None
        for failures in args.failures:
            row = measure(latency_ms, failures, args)
            if not failures:
                calm_s = row["mean_step_s"]
            row["cost"] = row["mean_step_s"] / calm_s - 1 if calm_s and failures else None
            rows.append(row)
            cost = "" if row["cost"] is None else f"{row['cost']:+.1%}"
            print(
                f"| {latency_ms:g} | {failures:.0%} | {row['step_s']:.3f} | {row['wait_s']:.4f} | {row['last_s']:.4f} "
                f"| {row['wait_share']:.1%} | {row['excess_share_max']:.2%} | {cost} | {row['failed_scores']:.0f} |",
                flush=True,
            )
    write_results(args.out, "reward_overlap", rows)
    late = any(row["excess_share_max"] > MOST_EXCESS for row in rows if not row["failures"])
    dear = any(row["cost"] is not None and row["cost"] >= MOST_COST for row in rows)
    return int(late or dear)


if __name__ == "__main__":
    sys.exit(main())
