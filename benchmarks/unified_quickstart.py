"""Measure the quickstart of packed training and what rewards make of it: seeds, and a control with shuffled rewards.

    python benchmarks/unified_quickstart.py sft [key=value ...] [--seeds 1 2 3] [--output-dir outputs/benchmark_unified]
    python benchmarks/unified_quickstart.py rl  [--seeds 1 2 3] ...
    python benchmarks/unified_quickstart.py control [--seeds 1] ...
    python benchmarks/unified_quickstart.py all [--seeds 1 2 3]
    python benchmarks/unified_quickstart.py all --seeds 1 --steps 3
    python benchmarks/unified_quickstart.py picture outputs/unified_sft_quickstart

`sft` runs configs/unified_sft_quickstart.yaml with an evaluation every 200 steps; `rl` runs configs/unified_rl_quickstart.yaml, once more
with `rewards.shuffle_control=true`. `control` trains the first recipe on the same rows without their thoughts: riddles are drawn and edits
by riddle made at once, as they then are measured. All write benchmarks/results/unified_<which>.json and print tables of
docs/unified_sft_quickstart.md. `all` does the three, `control` with the first seed alone. `picture` makes the page's picture of a run: its first samples, before
and after. Finished runs are not repeated. With `--steps` all of it is rehearsed in a few minutes: so many steps, four prompts of each held-out
set, and tables and picture go into the output folder. CPU seconds are those of the trainer's process in its steps: services and
evaluations do not count, so they hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LEVELS = ("0.25", "0.5", "0.75", "0.95")
RIGHT = (
    "drawn/exact",
    "edited/exact",
    "riddles/exact",
    "riddles/thought",
    "edit_riddles/exact",
    "edit_riddles/thought",
)
EDITS = ("edited/changed", "edited/kept", "edit_riddles/changed", "edit_riddles/kept")
AT_ONCE = ("riddles_at_once/exact", "edit_riddles_at_once/exact")
REWARDED = ("drawn/scene", "edited/scene", "drawn/exact", "edited/exact")
PLANS = {
    "sft": ("unified_sft_quickstart", ["evaluation.every=200"], (*RIGHT, *EDITS, *AT_ONCE)),
    "control": ("unified_sft_quickstart", [], ("drawn/exact", "edited/exact", *AT_ONCE)),
    "rl": ("unified_rl_quickstart", [], REWARDED),
}
ROWS = ROOT / "assets" / "unified_quickstart"


def without_thoughts(folder: Path) -> Path:
    """The first recipe on the same rows without their thoughts, and without what is drawn after one; its file."""
    recipe = yaml.safe_load((ROOT / "configs" / "unified_sft_quickstart.yaml").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    for group in recipe["packed"]["groups"]:
        for each in group["sets"]:
            if each["format"].endswith("_reason"):
                rows = [json.loads(line) for line in (ROOT / each["path"]).read_text(encoding="utf-8").splitlines()]
                path = folder / f"{Path(each['path']).stem}.json"
                kept = [{key: row[key] for key in row if key.lower() != "reasoning"} for row in rows]
                path.write_text(json.dumps(kept), encoding="utf-8")
                kind = each["format"].removesuffix("_reason")
                each |= {"path": str(path), "format": kind, "image_folder": str(ROWS)}
    del recipe["packed"]["think_instruction"], recipe["rewards"]["columns"]["thought"], recipe["checkpoint"]["export"]
    sets = recipe["evaluation"]["sets"]
    recipe["evaluation"]["sets"] = [each for each in sets if each.get("think") is None]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def rehearsal(recipe: Path, steps: int) -> list[str]:
    """Overrides that make a run of it short: few steps, evaluated before and after on four prompts of each set."""
    sets = yaml.safe_load(recipe.read_text(encoding="utf-8"))["evaluation"]["sets"]
    few = [f"evaluation.sets.{number}.max_prompts=4" for number in range(len(sets))]
    return [f"max_steps={steps}", f"evaluation.every={steps}", "optim.warmup_steps=0", *few]


def run(recipe: Path, name: str, output_dir: Path, overrides: list[str]) -> Path:
    """One run of a recipe's file; its run folder, which its export goes into, too."""
    place = [f"run_name={name}", f"output_dir={output_dir}"]
    if "export" in yaml.safe_load(recipe.read_text(encoding="utf-8")).get("checkpoint", {}):
        place.append(f"checkpoint.export={output_dir / name / 'model'}")
    command = [sys.executable, "-m", "trainer", "train", str(recipe), *place, *overrides]
    print("+", " ".join(command[1:]), flush=True)
    subprocess.run(command, cwd=ROOT, check=True)
    return output_dir / name


def load(run_dir: Path, shown: tuple[str, ...]) -> dict[str, Any]:
    """What the tables need of a run: held-out numbers by step, with the CPU seconds that were spent until then."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    spent = list(itertools.accumulate(row["time/cpu"] if row["step"] else 0.0 for row in rows))
    losses = ("heldout/ce", *(f"heldout/mse/{level}" for level in LEVELS))
    points = [
        {
            "step": row["step"],
            "cpu_s": cpu_s,
            **{name: row.get(f"eval/{name}") for name in shown},
            **{name: row[name] for name in losses if name in row},
        }
        for row, cpu_s in zip(rows, spent, strict=True)
        if any(row.get(f"eval/{name}") is not None for name in shown)
    ]
    return {"points": points, **{key: summary[key] for key in ("eval", "steps", "wall_s", "seed", "hardware")}}


def print_sft(results: dict[str, dict[str, Any]], names: tuple[str, ...]) -> None:
    """A row for each evaluation of each run."""
    heads = ("run", "step", "CPU s", "CE", *(f"MSE {level}" for level in LEVELS), *names)
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, result in results.items():
        for point in result["points"]:
            keys = ["heldout/ce", *(f"heldout/mse/{level}" for level in LEVELS), *names]
            cells = ["–" if point[each] is None else f"{point[each]:.3f}" for each in keys]
            print(f"| {name} | {point['step']} | {point['cpu_s']:.0f} | {' | '.join(cells)} |")


def print_rl(results: dict[str, dict[str, Any]]) -> None:
    """A row a run: before, after, and the gain of both rewards with its 95 % interval."""
    print(
        f"| run | CPU s | drawn: gain | edited: gain | {' | '.join(REWARDED)} |\n|---|---|---|---|{'---|' * len(REWARDED)}"
    )
    for name, result in results.items():
        found = result["eval"]
        gains = [found["gain"][each] for each in REWARDED[:2]]
        told = [f"{gain['gain']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" for gain in gains]
        cells = [f"{found['before'][each]:.3f} → {found['after'][each]:.3f}" for each in REWARDED]
        print(f"| {name} | {result['points'][-1]['cpu_s']:.0f} | {' | '.join(told)} | {' | '.join(cells)} |")


def draw_picture(run_dir: Path, path: Path, count: int = 8) -> None:
    """The first samples of the report, which are of all kinds in turn: what was asked and thought, the source, before and after."""
    listings = sorted((run_dir / "samples").glob("step_*.json"))
    first, last = (json.loads(each.read_text(encoding="utf-8")) for each in (listings[0], listings[-1]))
    steps = [int(each.stem.removeprefix("step_")) for each in (listings[0], listings[-1])]
    after = {record["prompt_id"]: record for record in last}
    figure, axes = plt.subplots(count, 4, figsize=(7.6, 0.86 * count), width_ratios=[4.4, 1, 1, 1])
    for row, before in zip(axes, first[:count], strict=True):
        record = after[before["prompt_id"]]
        said = (
            record["prompt"]
            if record["text"] is None
            else f"{record['prompt']}\nthought: {record['text'] or '(nothing)'}"
        )
        row[0].text(0, 0.5, said, fontsize=8, family="monospace", va="center")
        sources = record.get("sources") or [None]
        for axis, name in zip(row[1:], (sources[0], before["image"], record["image"]), strict=True):
            if name is not None:
                axis.imshow(np.asarray(Image.open(run_dir / name).convert("RGB")), interpolation="nearest")
        for axis in row:
            axis.axis("off")
    for axis, title in zip(axes[0, 1:], ("source", *(f"step {step}" for step in steps)), strict=True):
        axis.set_title(title, fontsize=8)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.96, wspace=0.06, hspace=0.08)
    figure.savefig(path, dpi=110)
    print(path)


def measure(which: str, seeds: list[int], output_dir: Path, overrides: list[str], steps: int | None) -> None:
    """The runs of one of `PLANS`, its results and its table."""
    name, usual, shown = PLANS[which]
    recipe = ROOT / "configs" / f"{name}.yaml"
    if which == "control":
        recipe = without_thoughts((ROOT / output_dir).resolve() / "rows_without_thoughts")
    runs = {f"{which}_seed{seed}": [f"seed={seed}"] for seed in seeds}
    if which == "rl":
        runs |= {f"rl_shuffled{seed}": [f"seed={seed}", "rewards.shuffle_control=true"] for seed in seeds}
    usual = usual if steps is None else rehearsal(recipe, steps)
    folders = {name: run(recipe, name, output_dir, [*usual, *more, *overrides]) for name, more in runs.items()}
    results = {name: load(ROOT / folder, shown) for name, folder in folders.items()}
    records = ROOT / "benchmarks" / "results" if steps is None else ROOT / output_dir
    records.mkdir(parents=True, exist_ok=True)
    (records / f"unified_{which}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if which == "rl":
        print_rl(results)
    else:
        print_sft(results, shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=[*sorted(PLANS), "all", "picture"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="One run each.")
    parser.add_argument("--steps", type=int, help="Rehearse with so many.")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/benchmark_unified"), help="Where the runs go.")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="Fields of the recipe, for all runs; with `picture` the run's folder.",
    )
    args = parser.parse_intermixed_args()  # fields stand before or behind the flags
    picture = ROOT / "docs" / "images" / "unified_sft_quickstart.png"
    if args.which == "picture":
        draw_picture(Path(args.overrides[0]), picture)
        return
    for which in ("sft", "control", "rl") if args.which == "all" else (args.which,):
        seeds = args.seeds[:1] if args.which == "all" and which == "control" else args.seeds
        measure(which, seeds, args.output_dir, args.overrides, args.steps)
    if args.which == "all":
        run_dir = ROOT / args.output_dir / f"sft_seed{args.seeds[0]}"
        draw_picture(run_dir, picture if args.steps is None else run_dir.parent / "picture.png")


if __name__ == "__main__":
    main()
