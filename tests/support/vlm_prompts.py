"""Small runs of the tiny vision-language model with a real rules service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.tiny_vlm import make_vlm, save_pictures


def prepare(place: Path) -> dict[str, Any]:
    """Write model, pictures and prompts into `place`. Returns the changes that make a `recipe` of them: two prompts a step, four
    answers each, rewards for the length and for the letter."""
    make_vlm(place / "model")
    pictures = save_pictures(place / "pictures")
    rows = [
        {"id": f"q{n}", "prompt": f"which color ? {n}", "targets": ["A"], "source_images": pictures[: n % 3] or None}
        for n in range(10)
    ]
    for name, part in (("train", rows[:6]), ("heldout", rows[6:])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return {
        "max_steps": 4,
        "policy": {"type": "vlm", "pretrained": str(place / "model"), "dtype": "float32"},
        "sampling": {"prompts_per_step": 2, "group_size": 4, "micro_batch_size": 4, "max_new_tokens": 6},
        "rewards__columns": {
            "letter": {"service": "rules", "reward": "option_letter"},
            "format": {"service": "rules", "reward": "think_format"},
        },
        "rewards__roles": {"accuracy": "letter"},
        "data__train": [{"path": str(place / "train.jsonl"), "rewards": {"letter": 1.0, "format": 0.5}}],
        "evaluation": {"path": str(place / "heldout.jsonl"), "every": 2, "batch_size": 4, "temperature": 0.0},
    }
