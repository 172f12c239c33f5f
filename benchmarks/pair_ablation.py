"""What training one half of the small model does to the other, and what pairs and their weights are worth.

    python benchmarks/pair_ablation.py [--seeds 1 2 3] [--steps 75] [--arms both generation ...] [--output-dir DIR] [key=value ...]

Runs configs/pair_quickstart.yaml once per arm and seed, then writes benchmarks/results/pair_ablation.json and prints the table of
docs/pair_quickstart.md: means over the seeds of the held-out rewards after the last step, each with its 95 % interval (Student's t
over seeds, which are few). Finished runs are not repeated. The arm `both` is the quickstart itself, `shuffled` its control.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MIXED = "data.train.0.path=assets/pair_quickstart/shuffled.jsonl"
ARMS: dict[str, tuple[str, ...]] = {
    "both": (),
    "linear": ("sampling.pair_weight=linear",),
    "none": ("sampling.pair_weight=none",),
    "random_pairs": (MIXED,),
    "without_pairs": (MIXED, "sampling.pair_weight=none"),
    "generation": ("sampling.tasks.understand=null",),
    "understanding": ("sampling.tasks.generate=null",),
    "shuffled": ("rewards.shuffle_control=true",),
}
SHOWN = ("drawn/scene", "drawn_greedy/scene", "answered/accuracy", "answered_greedy/accuracy", "blank/accuracy")
# Student's t, two-sided 95 %, by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def run(name: str, output_dir: Path, overrides: list[str]) -> Path:
    """One run; its folder."""
    place = [f"run_name={name}", f"output_dir={output_dir}", "logging.progress=false"]
    command = [sys.executable, "-m", "trainer", "train", "configs/pair_quickstart.yaml", *place, *overrides]
    print("+", " ".join(command), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)
    return ROOT / output_dir / name


def load(run_dir: Path) -> dict[str, Any]:
    """Curves of the held-out rewards, and what the run cost."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    steps = [row for row in rows if row["step"]]
    return {
        "steps": len(steps),
        "gain": summary["eval"]["gain"],
        "wall_s": summary["wall_s"],
        "rl_cpu_s": sum(row["time/cpu"] for row in steps),
        "curves": {
            name: [[row["step"], row[f"eval/{name}"]] for row in rows if row.get(f"eval/{name}") is not None]
            for name in SHOWN
        },
    }


def cell(values: list[float]) -> str:
    """Mean over seeds and the half-width of its interval."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = T95[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


def print_table(results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """A row an arm; the first is what no training gives."""
    print(f"| arm | seeds | {' | '.join(SHOWN)} | CPU s a run |")
    print(f"|---|---|{'---|' * len(SHOWN)}---|")
    first = next(iter(next(iter(results.values())).values()))
    before = " | ".join(f"{first['curves'][name][0][1]:.3f}" for name in SHOWN)
    print(f"| before | | {before} | |")
    for arm, seeds in results.items():
        runs = list(seeds.values())
        cells = " | ".join(cell([each["curves"][name][-1][1] for each in runs]) for name in SHOWN)
        print(f"| {arm} | {len(runs)} | {cells} | {statistics.mean(each['rl_cpu_s'] for each in runs):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="RL seeds, one run each.")
    parser.add_argument("--steps", type=int, default=75, help="Steps of a run.")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS], help="What is compared.")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/pair_ablation"), help="Where the runs go.")
    parser.add_argument("overrides", nargs="*", help="Fields of the recipe, for all runs.")
    args = parser.parse_args()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for seed in args.seeds:
        for arm in args.arms:
            changes = [f"seed={seed}", f"max_steps={args.steps}", *ARMS[arm], *args.overrides]
            results.setdefault(arm, {})[str(seed)] = load(run(f"{arm}_{seed}", args.output_dir, changes))
    records = ROOT / "benchmarks" / "results"
    records.mkdir(parents=True, exist_ok=True)
    (records / "pair_ablation.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table(results)


if __name__ == "__main__":
    main()
