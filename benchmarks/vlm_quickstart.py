"""Measure the small VLM's quickstart: seeds, and a control with shuffled rewards of the same length.

    python benchmarks/vlm_quickstart.py [--seeds 1 2 3] [--no-control] [--output-dir outputs/benchmark_vlm] [key=value ...]

Runs `bash train.sh configs/vlm_quickstart.yaml` once per seed and once with `rewards.shuffle_control=true`, then writes
benchmarks/results/vlm_quickstart.json and prints the table of docs/vlm_quickstart.md. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HELDOUT = ROOT / "assets" / "vlm_quickstart" / "heldout.jsonl"
SHOWN = ("accuracy", "greedy/accuracy", "blank/accuracy", "format", "thinks")


def run(name: str, output_dir: Path, overrides: list[str]) -> Path:
    """One run of train.sh; its run folder."""
    place = [f"run_name={name}", f"output_dir={output_dir}"]
    command = ["bash", "train.sh", "configs/vlm_quickstart.yaml", *place, *overrides]
    print("+", " ".join(command), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)
    return output_dir / name


def load(run_dir: Path) -> dict[str, Any]:
    """What the table needs of a run."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    steps = [row for row in rows if row["step"]]
    return {
        **{key: summary[key] for key in ("eval", "steps", "wall_s", "seed", "hardware", "failed_rewards")},
        "rl_s": sum(row["time/total"] for row in steps),
        "rl_cpu_s": sum(row["time/cpu"] for row in steps),
        "curves": {
            name: [[row["step"], row[f"eval/{name}"]] for row in rows if row.get(f"eval/{name}") is not None]
            for name in SHOWN
        },
        "train": [[row["step"], row["reward/accuracy/mean"], row["reward/format/mean"]] for row in steps],
        "kinds": kinds(run_dir / "eval" / f"step_{steps[-1]['step']:06d}" / "greedy"),
    }


def kinds(folder: Path) -> dict[str, dict[str, float]]:
    """Greedy answers after the last step, by what is asked: how many are right, and after how many of these right ones the
    thought is another than the one that looks."""
    rows = [json.loads(line) for line in HELDOUT.read_text(encoding="utf-8").splitlines()]
    found: dict[str, list[tuple[bool, bool]]] = {}
    for number, row in enumerate(rows):
        text = json.loads((folder / f"{number}.0.text.json").read_text(encoding="utf-8"))["text"]
        thought, _, answer = text.rpartition("</think>")
        right = answer.replace("<answer>", "").replace("</answer>", "").strip() == row["answer"]
        found.setdefault(row["kind"], []).append((right, thought.removeprefix("<think>").strip() == row["thought"]))
    return {
        kind: {
            "right": sum(right for right, _ in each) / len(each),
            "right_by_another_thought": sum(right and not looked for right, looked in each)
            / max(1, sum(right for right, _ in each)),
        }
        for kind, each in found.items()
    }


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """A row a run: before, after, and the gain of the sampled accuracy with its 95 % interval."""
    print(f"| run | RL s (CPU s) | gain | {' | '.join(SHOWN)} |")
    print(f"|---|---|---|{'---|' * len(SHOWN)}")
    for name, result in results.items():
        found = result["eval"]
        gain = found["gain"]["accuracy"]
        cells = [f"{found['before'][each]:.3f} → {found['after'][each]:.3f}" for each in SHOWN]
        interval = f"{gain['gain']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
        print(f"| {name} | {result['rl_s']:.0f} ({result['rl_cpu_s']:.0f}) | {interval} | {' | '.join(cells)} |")
    print("\n| run | kind | right, greedy | of these by another thought |\n|---|---|---|---|")
    for name, result in results.items():
        for kind, each in result["kinds"].items():
            print(f"| {name} | {kind} | {each['right']:.3f} | {each['right_by_another_thought']:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="RL seeds, one run each.")
    parser.add_argument("--no-control", action="store_true", help="Leave out the run with shuffled rewards.")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/benchmark_vlm"), help="Where the runs go.")
    parser.add_argument("overrides", nargs="*", help="Fields of the recipe, for all runs.")
    args = parser.parse_args()
    runs = {f"seed_{seed}": [f"seed={seed}"] for seed in args.seeds}
    if not args.no_control:
        runs["control_shuffled"] = ["seed=1", "rewards.shuffle_control=true"]
    folders = {name: run(name, args.output_dir, [*more, *args.overrides]) for name, more in runs.items()}
    results = {name: load(ROOT / folder) for name, folder in folders.items()}
    records = ROOT / "benchmarks" / "results"
    records.mkdir(parents=True, exist_ok=True)
    (records / "vlm_quickstart.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table(results)


if __name__ == "__main__":
    main()
