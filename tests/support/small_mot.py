"""A small Mixture-of-Transformers and rows for it, without a file besides its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trainer.config.mot import MotConfig
from trainer.data.sequences import ImageItem, SequencePlan, TextItem, Use
from trainer.policies.registry import build_policy
from trainer.policies.unified.mot.policy import MotPolicy

WORDS = ("draw", "make", "red", "green", "blue", "disc", "ring", "left", "right", "like", "blood", "sea")
SIZES = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "vision_layers": 1,
    "words": WORDS,
}


def small_mot(seed: int = 0, *, rough: bool = True, **changed: Any) -> MotPolicy:
    """A fresh policy in float32, always the same.

    Args:
        rough: the layer that leads to latents is not zero, so that every output depends on every weight.
    """
    torch.manual_seed(seed)
    config = MotConfig(**{"type": "mot", "initialize": SIZES, "dtype": "float32", "max_latent_size": 8, **changed})
    policy: MotPolicy = build_policy(config, torch.device("cpu"), keep_reference=False)
    if rough:
        torch.nn.init.normal_(policy.model.network.llm2vae.weight, std=0.2)
    return policy


def picture(folder: Path, name: str, color: str = "red", size: tuple[int, int] = (32, 32)) -> str:
    """The path of a picture of two colours, written there."""
    path = folder / f"{name}.png"
    image = Image.new("RGB", size, "white")
    image.paste(color, (4, 4, size[0] // 2, size[1] - 4))
    image.save(path)
    return str(path)


def row(name: str, *items: TextItem | ImageItem) -> SequencePlan:
    return SequencePlan(name, items)


def text(words: str, **said: Any) -> TextItem:
    return TextItem(words, **said)


def image(path: str, use: Use, **said: Any) -> ImageItem:
    return ImageItem(path, use, **said)


def four_rows(folder: Path) -> Sequence[SequencePlan]:
    """Drawn from a text; edited; drawn after a thought; edited after a thought, at another size."""
    one, two = picture(folder, "one"), picture(folder, "two", "blue")
    wide = picture(folder, "wide", "green", (32, 16))
    return (
        row("t2i", text("draw red disc left", droppable=True), image(one, "drawn")),
        row(
            "edit",
            text("make left blue", droppable=True),
            image(one, "clean", droppable=True),
            image(one, "seen", droppable=True),
            image(two, "drawn"),
        ),
        row("reason", text("draw like blood"), text("<think>red disc</think>", learnt=True), image(one, "drawn")),
        row(
            "reason edit",
            text("make left like sea"),
            image(wide, "clean"),
            image(wide, "seen"),
            text("<think>left blue</think>", learnt=True, then_image=True),
            image(wide, "drawn"),
        ),
    )
