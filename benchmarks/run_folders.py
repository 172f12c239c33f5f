"""Makes run folders as a trainer leaves them, of any length: for the benchmark of the runs page, and for its tests."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

COLORS = ((215, 38, 38), (20, 140, 60), (35, 75, 205))
CONFIG: dict[str, Any] = {
    "run_name": "made",
    "output_dir": "outputs",
    "seed": 1,
    "max_steps": 100,
    "program": "rl",
    "policy": {"type": "tiny"},
    "sampling": {"type": "flow", "prompts_per_step": 8, "group_size": 12},
    "objective": {"type": "flow_grpo", "clip_range": 1e-4},
    "optim": {"lr": 1e-4},
    "evaluation": {"path": "heldout.jsonl", "seed": 1234, "num_inference_steps": 10, "every": 10},
}


def training_row(step: int, rng: random.Random, skill: float = 1.0) -> dict[str, float]:
    """A step of two rewards, with as many keys as the quickstart's."""
    rise = skill * (1 - math.exp(-step / 2000)) if step > 300 else skill * step / 2000
    row = {
        "adv/mean": rng.gauss(0, 1e-9),
        "adv/std": 0.99 + 0.01 * rng.random(),
        "adv/abs_mean": 0.8 + 0.05 * rng.random(),
        "adv/clip_share": 0.0,
        "adv/trained_share": 1.0,
        "lr": 1e-4,
        "grad_norm": 0.012 + 0.002 * rng.random(),
        "loss/policy": rng.gauss(0, 1e-9),
        "loss/kl": 0.0,
        "ratio/mean": 1.0,
        "ratio/min": 1 - 1e-5 * rng.random(),
        "ratio/max": 1 + 1e-5 * rng.random(),
        "ratio/std": 1e-6 * rng.random(),
        "ratio/replay_error": 0.0,
        "clip_share": 0.01 * rng.random(),
        "kl": 0.0,
        "reward_wait_share": 0.02 * rng.random(),
        "wait/last_latency_s": 0.15,
        "wait/excess_s": 0.01 * rng.random(),
        "time/encode": 0.02,
        "time/denoise": 1.1 + 0.1 * rng.random(),
        "time/decode": 0.005,
        "images_per_s": 48.0,
        "step": step,
        "time/rollout": 1.2,
        "time/reward_wait": 0.05,
        "time/update": 0.74,
        "time/total": 2.0,
        "time/cpu": 3.0,
    }
    for name in ("ocr", "color"):
        row |= {
            f"adv/{name}/abs_mean": 0.7 + 0.1 * rng.random(),
            f"adv/{name}/zero_group_share": 0.125 * rng.randrange(3),
            f"reward/{name}/valid_share": 1.0,
            f"reward/{name}/mean": min(1.0, 0.5 + 0.4 * rise + rng.gauss(0, 0.02)),
            f"reward/{name}/std": 0.2 + 0.05 * rng.random(),
            f"latency_ms/{name}/p50": 200 + 50 * rng.random(),
            f"latency_ms/{name}/p95": 300 + 50 * rng.random(),
            f"latency_ms/{name}/max": 400 + 50 * rng.random(),
        }
    for name in ("saturation", "brightness", "contrast", "edge_density", "colour_entropy", "sharpness", "diversity"):
        row[f"stats/{name}"] = 0.3 + 0.05 * rng.random()
    return row


def evaluation_entries(mean: float, gain: float | None = None) -> dict[str, float]:
    """What an evaluation adds to a row."""
    found = {"time/evaluate": 4.0}
    for name in ("ocr", "color"):
        found |= {f"eval/{name}/valid_share": 1.0, f"eval/{name}": mean}
        found |= {f"eval/{name}/low": mean - 0.03, f"eval/{name}/high": mean + 0.03}
        if gain is not None:
            found |= {
                f"eval/{name}/gain": gain,
                f"eval/{name}/gain_low": gain - 0.04,
                f"eval/{name}/gain_high": gain + 0.04,
            }
    return found


def rows_of(steps: int, *, seed: int = 1, skill: float = 1.0, every: int = 100) -> list[dict[str, float]]:
    """Row 0 and those of all steps, with an evaluation every so many of them."""
    rng = random.Random(seed)
    rows: list[dict[str, float]] = [{"step": 0, **evaluation_entries(0.5)}]
    for step in range(1, steps + 1):
        row = training_row(step, rng, skill)
        if step % every == 0:
            gain = skill * 0.4 * step / steps
            row |= evaluation_entries(0.5 + gain, gain)
        rows.append(row)
    return rows


def lines_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as `metrics.jsonl` has them."""
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def make_run(
    folder: Path, rows: Sequence[Mapping[str, Any]], *, finished: bool = True, config: Mapping[str, Any] | None = None
) -> Path:
    """Write a run with these rows; finished: with a summary of the last of them."""
    (folder / "starts").mkdir(parents=True)
    text = yaml.safe_dump({**CONFIG, "max_steps": rows[-1]["step"], **(config or {})}, sort_keys=False)
    (folder / "config.yaml").write_text(text)
    (folder / "starts" / "0001_step_000000.yaml").write_text(text)
    (folder / "metrics.jsonl").write_text(lines_of(rows))
    if finished:
        evaluated = [row for row in rows if "eval/ocr" in row]
        ends = {
            end: {name: row[f"eval/{name}"] for name in ("ocr", "color")}
            for end, row in (("before", evaluated[0]), ("after", evaluated[-1]))
        }
        summary = {
            "eval": ends,
            "steps": rows[-1]["step"],
            "wall_s": sum(row.get("time/total", 0) + row.get("time/evaluate", 0) for row in rows),
            "failed_rewards": 0,
        }
        summary |= {"stopped": None, "owed": None, "hardware": "2 x NVIDIA H200"}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def add_evaluation(folder: Path, step: int, scores: Mapping[str, Sequence[float | None]]) -> None:
    """The scores by prompt of an evaluation, reward by reward, prompt by prompt."""
    place = folder / "eval" / f"step_{step:06d}"
    place.mkdir(parents=True)
    count = len(next(iter(scores.values())))
    lines = []
    for n in range(count):
        own = {name: values[n] for name, values in scores.items()}
        errors = {name: "timeout" for name, value in own.items() if value is None}
        line = {"set": "", "index": n, "duplicate": 0, "prompt_id": f"word-{n}", "scores": own, "errors": errors}
        lines.append(json.dumps(line | {"statistics": {}, "points": []}))
    (place / "scores.jsonl").write_text("\n".join(lines) + "\n")
    (place / "alarms.json").write_text("[]\n")


def add_samples(folder: Path, step: int, words: Sequence[str], scores: Sequence[float]) -> None:
    """Samples of an evaluation: a picture for each word, what was read in it, and where."""
    place = folder / "samples" / f"step_{step:06d}"
    place.mkdir(parents=True)
    records = []
    for n, (word, score) in enumerate(zip(words, scores, strict=True)):
        image = Image.new("RGB", (48, 24), "white")
        ImageDraw.Draw(image).text((6, 6), word, fill=COLORS[n % len(COLORS)])
        image.save(place / f"{n}.png")
        box = [[5, 5], [40, 5], [40, 18], [5, 18]]
        seen = {"ocr": {"images": [{"lines": [{"text": word, "confidence": 0.75, "box": box}]}], "why": f"read {word}"}}
        records.append(
            {
                "id": f"word-{n}#0",
                "prompt_id": f"word-{n}",
                "prompt": f'the word "{word}"',
                "text": None,
                "scores": {"ocr": score},
                "targets": [word],
                "read": word if score > 0.5 else "?",
                "seen": seen,
                "image": f"samples/step_{step:06d}/{n}.png",
            }
        )
    (folder / "samples" / f"step_{step:06d}.json").write_text(json.dumps(records))
