"""Files of packed training with their images, in the field names of those who publish such files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.config.packed import PackedConfig
from trainer.data.formats.groups import read_groups
from trainer.data.packing.groups import PackGroup
from trainer.data.sequences import Plans

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
# A row of each of UniReason's six kinds; the images are those that `write_images` writes.
ROWS: Mapping[str, Mapping[str, Any]] = {
    "t2i": {"type": "T2I_SFT", "txt": "a red square", "image": "", "image_path": "red.png"},
    "edit": {"input_image": ["red.png"], "output_image": "green.png", "instruction": "make it green"},
    "t2i_reason": {"txt": "the colour of blood", "Reasoning": " blood is red ", "image_path": "red.png"},
    "edit_reason": {
        "instruction": "as grass",
        "reasoning": "grass is green",
        "input_image": "red.png",
        "output_image": ["green.png"],
    },
    "t2i_refine": {
        "prompt": "a green square",
        "Text Reasoning Trace": "THOUGHT 1: it is red, make it green<image_start>[second]<image_end>",
        "img_path": "red.png",
        "explanation": " a square in the middle ",
        "second": "green.png",
        "4o_init": "unused.png",
    },
    "edit_refine": {
        "prompt": "make it blue",
        "Text Reasoning Trace": "THOUGHT 1: still green <image_start>[a1]<image_end>\nTHOUGHT 2: more blue<image_start>[a2]<image_end>done",
        "before_image_path": "red.png",
        "after_image_path": "green.png",
        "explanation": "blue it is",
        "a1": "green.png",
        "a2": ["blue.png"],
    },
}


def write_images(folder: Path) -> Path:
    """An image of each colour, 32 pixels a side."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (32, 32), colour).save(folder / f"{name}.png")
    return folder


def write_rows(path: Path, rows: Sequence[Any], *, array: bool = True) -> Path:
    """The rows as a JSON array, or as JSON lines with blank lines between."""
    text = json.dumps(rows, indent=1) if array else "\n\n".join(map(json.dumps, rows)) + "\n"
    path.write_text(text, encoding="utf-8")
    return path


def groups_of(
    path: Path, kind: str, *, seed: int = 0, group: Mapping[str, Any] | None = None, **fields: Any
) -> list[PackGroup]:
    """One group of one file."""
    named = ("hold_out", "think_instruction", "refine_instruction")
    packed = {name: fields.pop(name) for name in named if name in fields}
    sets = [{"path": str(path), "format": kind, **fields}]
    section = {"groups": [{"name": "all", "sets": sets, **(group or {})}], **packed}
    return read_groups(PackedConfig.model_validate(section), seed)


def plans_of(path: Path, kind: str, **fields: Any) -> Plans:
    """The rows of one file."""
    return groups_of(path, kind, **fields)[0].sets[0].plans
