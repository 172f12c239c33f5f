"""Which part of the model a parameter belongs to, and in which type it is held."""

from __future__ import annotations

import torch

from trainer.config.mot import MotConfig, MotPart
from trainer.policies.lora import compute_dtype


def part_of(name: str) -> MotPart | None:
    """The part that a parameter belongs to, by its name; None for the tables of positions, which are never trained."""
    if name.endswith("pos_embed"):
        return None
    if name.startswith("vit_model."):
        return "vision"
    if name.startswith("connector."):
        return "connector"
    if "_moe_gen" in name or not name.startswith("language_model."):
        return "generation"
    return "language"


def held_as(name: str, config: MotConfig) -> torch.dtype:
    """The type that a weight is held in: float32 where it is trained, the type of computations where it is frozen. The tables of
    positions are never rounded."""
    return compute_dtype(config) if part_of(name) in config.freeze else torch.float32
