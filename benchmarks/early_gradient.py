"""What a step costs when rewards are late, with the gradient computed meanwhile and after them.

    python benchmarks/early_gradient.py
    python benchmarks/early_gradient.py --latencies-ms 500 --repeats 3
    python benchmarks/early_gradient.py --kl-beta 0.1

Runs of the tiny policy against a service that only waits, on-policy, with `optim.early_gradient: never` and `auto` in turn; with a KL to
its starting weights, `never` and `always`. `before` and `after` are medians of `time/total`; the step without latency, sampling S and the update U are of the runs with latency 0. The service
answers every micro-batch after L, so the scores of K micro-batches come as far apart as these were sampled, and the best that can be
had is step + L - min(L, S (K - 1) / K, U (K - 1) / K): `limit`. `CPU` is what a step costs after by what it costs before, in CPU seconds of this
process (the service is in it on both sides): what being early costs by itself. With a KL that is a price by design (docs/decisions/0155),
so there the step without latency, S and U of the limit are those of the runs that pay it. Exits with 1 when a step is more than 5 % of the step without
latency above the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import write_results
from tests.support.reward_servers import Reply, ScriptedServer, good
from trainer.config import Config
from trainer.loop import train

MOST_ABOVE = 0.05


def late_server(latency_ms: float) -> ScriptedServer:
    """Answers a micro-batch after so long; the score is the number of the sample in its group."""

    def behave(request: dict[str, Any]) -> Reply:
        reply = good(request)
        reply.delay_s = latency_ms / 1000 if len(request["items"]) == 8 else 0.0
        return reply

    return ScriptedServer(behave)


def rows_of(folder: Path, name: str, url: str, early: bool, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a run, without its first step."""
    words = [f'the word "{word}" in red' for word in ("CAT", "HUT", "TEA", "MAP", "LAW", "NET", "YAK", "VAN")]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": word, "prompt": word}) + "\n" for word in words))
    tree: dict[str, Any] = {
        "run_name": name,
        "output_dir": str(folder),
        "max_steps": args.steps + 1,
        "policy": {"type": "tiny", "num_layers": 4, "num_heads": 4, "head_dim": 32},
        "sampling": {"prompts_per_step": 8, "group_size": 8, "micro_batch_size": 8, "num_inference_steps": 4},
        "rewards": {"services": {"late": {"urls": [url]}}, "columns": {"late": {"service": "late", "canary": "none"}}},
        "data": {"train": [{"path": str(prompts), "rewards": {"late": 1.0}}]},
        "objective": {"kl_beta": args.kl_beta},
        "optim": {"lr": 1e-4, "early_gradient": ("always" if args.kl_beta else "auto") if early else "never"},
        "distributed": {"num_threads": 1},
        "checkpoint": {"save_every": 1000},
        "logging": {"report_every": 1000, "report_to": [], "progress": False},
    }
    if train(Config.model_validate(tree)):
        raise SystemExit(f"{name} did not finish")
    lines = (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for line in lines if (row := json.loads(line))["step"] > 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--latencies-ms", type=float, nargs="+", default=[0, 250, 500, 1000, 2000])
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each kind, in turn.")
    parser.add_argument("--steps", type=int, default=4, help="Steps measured per run, after one that is not.")
    parser.add_argument("--kl-beta", type=float, default=0.0, help="Weight of a KL, whose gradient is kept apart.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/early_gradient.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| latency ms | step before | step after | hidden | limit | above the limit | CPU |")
    print("|---|---|---|---|---|---|---|")
    results, calm_s, hideable_s, worst, price = list[dict[str, Any]](), 0.0, 0.0, 0.0, ""
    with tempfile.TemporaryDirectory() as scratch:
        for latency_ms in args.latencies_ms:
            found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
            for repeat in range(args.repeats):
                for early in (False, True) if repeat % 2 == 0 else (True, False):
                    server = late_server(latency_ms)
                    name = f"{latency_ms:g}-{repeat}-{early}"
                    try:
                        found[early] += rows_of(Path(scratch), name, server.url, early, args)
                    finally:
                        server.close()
            before, after = (statistics.median(row["time/total"] for row in found[early]) for early in (False, True))
            cpu = statistics.median(row["time/cpu"] for row in found[True]) / statistics.median(
                row["time/cpu"] for row in found[False]
            )
            hidden = statistics.median(row["time/update_hidden"] for row in found[True])
            if not results:
                calm_s, calm = (after, found[True]) if args.kl_beta else (before, found[False])
                parts = ("time/rollout", "time/update")
                both = [statistics.median(row["time/update"] for row in found[early]) for early in (False, True)]
                price = f"update without latency: before {both[0]:.3f} s, after {both[1]:.3f} s, {both[1] / both[0]:.3f} times"
                hideable_s = 7 / 8 * min(statistics.median(row[part] for row in calm) for part in parts)
            limit = calm_s + latency_ms / 1000 - min(latency_ms / 1000, hideable_s)
            above = (after - limit) / calm_s
            worst = max(worst, above)
            results.append(
                {
                    "latency_ms": latency_ms,
                    "kl_beta": args.kl_beta,
                    "before_s": before,
                    "after_s": after,
                    "hidden_s": hidden,
                    "limit_s": limit,
                    "cpu": cpu,
                }
            )
            print(
                f"| {latency_ms:g} | {before:.3f} | {after:.3f} | {hidden:.3f} | {limit:.3f} | {above:+.1%} | {cpu:.3f} |",
                flush=True,
            )
    print(f"\n{price}")
    write_results(args.out, "early_gradient", results)
    return int(worst > MOST_ABOVE)


if __name__ == "__main__":
    sys.exit(main())
