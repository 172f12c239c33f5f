"""Learning curves of the quickstart under different algorithms, seed by seed.

    python benchmarks/learning.py estimators   # GDPO against summed GRPO, one reward with a tenth of the other's spread
    python benchmarks/learning.py samplers     # Flow-GRPO, Fast, MixGRPO and DiffusionNFT by reward per CPU-second
    python benchmarks/learning.py guidance     # the gradient of both halves of guidance against that of the conditional one

Every run is a real one: services as processes, 192 held-out prompts, a deterministic ODE. Finished runs are not
repeated. The table gives, per arm, held-out means over the seeds after the last step, and the difference to the first
arm, paired by seed, with a 95 % t-interval; then the same at equal cost: when each run has spent what the cheapest one
spends in all. A run that needs more is then in the middle of its learning rate's schedule. CPU seconds are those of the
trainer's process in its steps (services and evaluations do not count), so they hardly depend on what else the machine
does. Results: benchmarks/results/learning_<which>.json, and the curves of all seeds as benchmarks/results/learning_<which>.svg.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}  # two-sided, by degrees of freedom

_TENTH = [
    "rewards.services.rules.args={functions: benchmarks/tenth_of_color.py}",
    "rewards.columns.color_tenth={service: rules, reward: color_tenth}",
    "data.train.0.rewards={ocr: 1.0, color_tenth: 1.0}",
]
ARMS: dict[str, dict[str, list[str]]] = {
    "estimators": {
        "gdpo": [*_TENTH, "advantage.type=gdpo"],
        "summed_grpo": [*_TENTH, "advantage.type=grpo"],
    },
    "samplers": {
        # All five stochastic steps of six are trained.
        "flow_grpo": [],
        # Two stochastic steps at a random place, the rest an ODE; a group shares what comes before them.
        "fast": ["sampling.sde_window_size=2", "sampling.same_noise=true"],
        # Two stochastic steps that move from noise to data, DPM-Solver++ outside.
        "mix_grpo": [
            "sampling.sde_window_size=2",
            "sampling.sde_window_motion=progressive",
            "sampling.sde_window_every=12",
            "sampling.solver=dpm2m",
            "sampling.same_noise=true",
        ],
        # No SDE at all: the forward process is trained.
        "nft": ["objective.type=diffusion_nft"],
    },
    "guidance": {
        "both": ["sampling.guidance_scale=3"],
        "conditional": ["sampling.guidance_scale=3", "sampling.guidance_gradient=conditional"],
    },
}
TRAINED = ("ocr", "color")
REWARDS = (*TRAINED, "ocr_independent")


def run(which: str, arm: str, seed: int, output_dir: Path, extra: list[str]) -> dict[str, Any]:
    """One run's held-out rewards by step, and the CPU seconds of its trainer."""
    name = f"{which}_{arm}_{seed}"
    overrides = [f"run_name={name}", f"output_dir={output_dir}", f"seed={seed}", *ARMS[which][arm], *extra]
    command = [sys.executable, "-m", "trainer", "train", "configs/quickstart.yaml", *overrides]
    print("+", " ".join(command[2:]), flush=True)
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    rows = [json.loads(line) for line in (output_dir / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    spent = list(itertools.accumulate(row["time/cpu"] if row["step"] else 0.0 for row in rows))
    curves = {
        reward: [
            [row["step"], cpu_s, row[f"eval/{reward}"]]
            for row, cpu_s in zip(rows, spent, strict=True)
            if row.get(f"eval/{reward}") is not None
        ]
        for reward in REWARDS
    }
    return {
        "arm": arm,
        "seed": seed,
        "curves": curves,  # step, CPU seconds so far, held-out mean
        "rollout_s": sum(row["time/rollout"] for row in rows if row["step"]),
        "update_s": sum(row["time/update"] for row in rows if row["step"]),
        "cpu_s": sum(row["time/cpu"] for row in rows if row["step"]),
    }


def interval(differences: list[float]) -> str:
    """Mean and half-width of the 95 % t-interval."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return f"{mean:+.3f}"
    half = T_95[len(differences) - 1] * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.3f} ± {half:.3f}"


def table(results: list[dict[str, Any]]) -> None:
    """Markdown, as it stands in docs/LOG.md."""
    arms = list(dict.fromkeys(result["arm"] for result in results))
    print("\n| arm | reward | before | after, mean of seeds | difference to the first arm |\n|---|---|---|---|---|")
    for arm in arms:
        for reward in REWARDS:
            last = {
                a: {r["seed"]: r["curves"][reward][-1][2] for r in results if r["arm"] == a} for a in (arms[0], arm)
            }
            seeds = sorted(last[arm].keys() & last[arms[0]].keys())
            first = statistics.fmean(r["curves"][reward][0][2] for r in results if r["arm"] == arm)
            against = "" if arm == arms[0] else interval([last[arm][s] - last[arms[0]][s] for s in seeds])
            print(f"| {arm} | {reward} | {first:.3f} | {statistics.fmean(last[arm].values()):.3f} | {against} |")
    by_cpu(results, arms)


def by_cpu(results: list[dict[str, Any]], arms: list[str]) -> None:
    """What each arm costs, and what it has reached when it has spent half and all of what the cheapest run spends in all."""
    budget_s = min(result["cpu_s"] for result in results)
    reached = {
        (arm, reward, cpu_s): {
            r["seed"]: statistics.fmean(after(r["curves"][each], cpu_s) for each in reward)
            for r in results
            if r["arm"] == arm
        }
        for arm in arms
        for reward, cpu_s in (
            (TRAINED, budget_s / 2),
            (TRAINED, budget_s),
            (TRAINED[:1], budget_s),
            (TRAINED[1:], budget_s),
        )
    }
    heads = [f"{' and '.join(reward)} after {cpu_s:.0f} CPU s" for arm, reward, cpu_s in reached if arm == arms[0]]
    print(f"\n| arm | trainer CPU s | rollout s | update s | {' | '.join(heads)} |")
    print("|---" * (4 + len(heads)) + "|")
    for arm in arms:
        own = [result for result in results if result["arm"] == arm]
        cells = [f"{statistics.fmean(result[key] for result in own):.0f}" for key in ("cpu_s", "rollout_s", "update_s")]
        for (_, *rest), values in [item for item in reached.items() if item[0][0] == arm]:
            first = reached[arms[0], rest[0], rest[1]]
            against = interval([value - first[seed] for seed, value in values.items() if seed in first])
            cells.append(f"{statistics.fmean(values.values()):.3f}" + (f" ({against})" if arm != arms[0] else ""))
        print(f"| {arm} | {' | '.join(cells)} |")


def after(curve: list[list[float]], cpu_s: float) -> float:
    """The held-out mean after so many CPU seconds, linear between two evaluations."""
    for (_, begin_s, low), (_, end_s, high) in itertools.pairwise(curve):
        if begin_s <= cpu_s <= end_s:
            return low + (high - low) * (cpu_s - begin_s) / (end_s - begin_s)
    return curve[-1][2]


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Held-out rewards by CPU seconds: a thin line a run, a thick one for the mean of an arm's seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, reward in zip(axes, TRAINED, strict=True):
        for n, arm in enumerate(dict.fromkeys(result["arm"] for result in results)):
            curves = [result["curves"][reward] for result in results if result["arm"] == arm]
            for curve in curves:
                axis.plot(
                    [point[1] for point in curve], [point[2] for point in curve], f"C{n}", alpha=0.3, linewidth=0.8
                )
            means = [
                [statistics.fmean(values) for values in zip(*points, strict=True)]
                for points in zip(*curves, strict=True)
            ]
            axis.plot(
                [m[1] for m in means], [m[2] for m in means], f"C{n}", marker="osD^"[n % 4], markersize=4, label=arm
            )
        axis.set(title=f"held-out {reward}", xlabel="CPU seconds of the trainer")
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=sorted(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", help="A part of the arms.")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="For every run, such as max_steps=30.")
    args = parser.parse_args()
    arms = args.arms or list(ARMS[args.which])
    results = [run(args.which, arm, seed, args.output_dir, args.overrides) for seed in args.seeds for arm in arms]
    path = ROOT / "benchmarks" / "results" / f"learning_{args.which}.json"
    path.write_text(json.dumps(results) + "\n", encoding="utf-8")
    plot(results, path.with_suffix(".svg"))
    table(results)


if __name__ == "__main__":
    main()
