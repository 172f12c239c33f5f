"""Small runs of a policy that writes on given texts: files of conversations and of pairs, and the recipes for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.support.tiny_vlm import make_vlm, save_pictures

COLORS = ("red", "green", "blue", "yellow")


def write_texts(folder: Path) -> None:
    """A model, pictures, conversations.json and pairs.jsonl: eight rows each, with no to two pictures, of unequal length."""
    if not (folder / "model").is_dir():
        make_vlm(folder / "model")
    pictures = [Path(path).name for path in save_pictures(folder)]
    talks, pairs = [], []
    for number in range(8):
        images = [pictures[(number + n) % 4] for n in range(number % 3)]
        question = f"what color is the {['disc', 'bar', 'cross', 'ring'][number % 4]} {'?' * (1 + number % 2)} {number}"
        color = ("red", "green", "blue", "black")[number % 4]
        texts = [{"user": question, "assistant": f"{color} . {'yes ' * (number % 4)}"}]
        if number % 2:
            texts.append({"user": "how many ?", "assistant": "one two three"})
        talks.append({"images": images, "texts": texts})
        pairs.append(
            {
                "images": images,
                "prompt": question,
                "chosen": f"<answer> {color} </answer>",
                "rejected": "nothing " * (1 + number % 3),
            }
        )
    (folder / "conversations.json").write_text(json.dumps(talks), encoding="utf-8")
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")


def tree(folder: Path, program: str, name: str, **changes: Any) -> dict[str, Any]:
    """The recipe of a small run; `program` is supervised or preference."""
    given: dict[str, dict[str, Any]] = {
        "supervised": {"conversations": {"path": "conversations.json", "batch_size": 4, "micro_batch_size": 2}},
        "preference": {
            "preferences": {"path": "pairs.jsonl", "batch_size": 4, "micro_batch_size": 2},
            "objective": {"beta": 0.5},
        },
    }
    found: dict[str, Any] = {
        "run_name": name,
        "output_dir": str(folder / "outputs"),
        "program": program,
        "max_steps": 4,
        "policy": {"type": "vlm", "pretrained": str(folder / "model"), "dtype": "float32"},
        "optim": {"lr": 1e-3, "schedule": "constant"},
        "checkpoint": {"save_every": 1},
        "distributed": {"device": "cpu", "num_threads": 1},
        "logging": {"report_every": 1000, "report_to": [], "progress": False},
        **given.get(program, {}),
    }
    for key, value in changes.items():
        section, _, field = key.partition("__")
        found[section] = {**found.get(section, {}), field: value} if field else value
    for section in ("conversations", "preferences"):
        if section in found:
            found[section] = {**found[section], "path": str(folder / found[section]["path"]), "image_dir": str(folder)}
    return found


def write_recipe(folder: Path, program: str, name: str = "run", **changes: Any) -> Path:
    """The recipe as a file; `section__field` changes one field of a section."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree(folder, program, name, **changes)), encoding="utf-8")
    return path
