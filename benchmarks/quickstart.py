"""Measure the quickstart: seeds, a control with shuffled rewards, curves, and the README's picture.

    python benchmarks/quickstart.py [--seeds 1 2 3] [--no-control] [--output-dir outputs/benchmark]

Runs `bash train.sh` once per seed and once with `rewards.shuffle_control=true`, then writes
benchmarks/results/quickstart.json, docs/images/quickstart_curves.png and docs/images/quickstart.png, and prints the
tables of docs/LOG.md. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
REWARDS = ("ocr", "color", "ocr_independent")
COLORS = {"ocr": "#0072B2", "color": "#D55E00", "ocr_independent": "#009E73"}  # Okabe-Ito


def run(name: str, output_dir: Path, overrides: list[str]) -> Path:
    """One run of train.sh; its run folder."""
    run_dir = output_dir / name
    command = [
        "bash",
        "train.sh",
        "configs/quickstart.yaml",
        f"run_name={name}",
        f"output_dir={output_dir}",
        *overrides,
    ]
    print("+", " ".join(command), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)
    return run_dir


def load(run_dir: Path) -> dict[str, Any]:
    """What the tables need of a run."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    curves = {
        name: [[row["step"], row[f"eval/{name}"]] for row in rows if row.get(f"eval/{name}") is not None]
        for name in REWARDS
    }
    train = [[row["step"], row["reward/ocr/mean"], row["reward/color/mean"]] for row in rows if row["step"]]
    waits = sorted(row["wait/excess_s"] / row["time/total"] for row in rows if row["step"])
    keep = ("eval", "steps", "wall_s", "reward_wait_share", "failed_rewards", "seed", "hardware")
    return {
        **{key: summary[key] for key in keep},
        "excess_wait_share_median": waits[len(waits) // 2],
        "curves": curves,
        "train": train,
    }


def print_tables(results: dict[str, dict[str, Any]]) -> None:
    """Markdown, as it stands in docs/LOG.md."""
    print("\n| run | reward | before | after | rise |\n|---|---|---|---|---|")
    for name, result in results.items():
        for reward in REWARDS:
            before, after = result["eval"]["before"][reward], result["eval"]["after"][reward]
            print(f"| {name} | {reward} | {before:.3f} | {after:.3f} | {after - before:+.3f} |")
    print("\n| run | RL part, s | reward_wait_share | failed rewards |\n|---|---|---|---|")
    for name, result in results.items():
        print(f"| {name} | {result['wall_s']:.0f} | {result['reward_wait_share']:.3f} | {result['failed_rewards']} |")
    steps = sorted({step for result in results.values() for step, _ in result["curves"]["ocr"]})
    print("\n| run, held-out reward | " + " | ".join(f"step {step}" for step in steps) + " |")
    print("|---|" + "---|" * len(steps))
    for name, result in results.items():
        for reward in ("ocr", "color"):
            values = dict((step, value) for step, value in result["curves"][reward])
            cells = [f"{values[step]:.3f}" if step in values else "" for step in steps]
            print(f"| {name}, {reward} | " + " | ".join(cells) + " |")
    print(f"\nHardware: {next(iter(results.values()))['hardware']}")


def plot_curves(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Held-out OCR and colour of every run, the control dashed."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, reward in zip(axes, ("ocr", "color"), strict=True):
        for name, result in results.items():
            steps, values = zip(*result["curves"][reward], strict=True)
            control = "control" in name
            style = {"color": "#666666", "linestyle": "--"} if control else {"color": COLORS[reward]}
            marker = "x" if control else "os^v"[list(results).index(name) % 4]
            axis.plot(steps, values, marker=marker, label=name, **style)
        axis.set(title=f"held-out {reward}", xlabel="RL step", ylim=(0.3, 1.0))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def draw_picture(run_dir: Path, path: Path, columns: int = 8) -> None:
    """All kept samples before and after, in file order: the README's picture."""
    listings = sorted((run_dir / "samples").glob("step_*.json"))
    before, after = (json.loads(p.read_text(encoding="utf-8")) for p in (listings[0], listings[-1]))
    blocks = len(before) // columns
    figure, axes = plt.subplots(2 * blocks, columns, figsize=(1.55 * columns, 2.35 * blocks), layout="constrained")
    counts = []
    for half, records in enumerate((before, after)):
        counts.append(0)
        for number, record in enumerate(records[: blocks * columns]):
            axis = axes[2 * (number // columns) + half][number % columns]
            axis.imshow(Image.open(run_dir / record["image"]).resize((192, 96), Image.Resampling.NEAREST))
            axis.set_xticks([])
            axis.set_yticks([])
            right = (record["read"] or "").upper() == record["prompt"].split('"')[1]
            counts[-1] += right
            axis.set_xlabel(f"{record['read'] or 'nothing'} {'✓' if right else '✗'}", fontsize=10, labelpad=2)
            if half == 0:
                axis.set_title(record["prompt"].removeprefix("the word "), fontsize=10, pad=3)
            if number % columns == 0:
                axis.set_ylabel(("before", "after")[half], fontsize=11)
    figure.suptitle(f"Read as asked: {counts[0]} of {blocks * columns} before, {counts[1]} after", fontsize=13)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="RL seeds, one run each.")
    parser.add_argument("--no-control", action="store_true", help="Leave out the run with shuffled rewards.")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/benchmark"), help="Where the runs go.")
    args = parser.parse_args()
    runs = {f"seed_{seed}": [f"seed={seed}"] for seed in args.seeds}
    if not args.no_control:
        runs["control_shuffled"] = ["seed=1", "rewards.shuffle_control=true"]
    folders = {name: run(name, args.output_dir, overrides) for name, overrides in runs.items()}
    results = {name: load(ROOT / folder) for name, folder in folders.items()}
    images, records = ROOT / "docs" / "images", ROOT / "benchmarks" / "results"
    images.mkdir(parents=True, exist_ok=True)
    records.mkdir(parents=True, exist_ok=True)
    (records / "quickstart.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_tables(results)
    plot_curves(results, images / "quickstart_curves.png")
    draw_picture(ROOT / next(iter(folders.values())), images / "quickstart.png")


if __name__ == "__main__":
    main()
