"""Checkpoints of made-up runs, written by the product's own writer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint import CheckpointWriter, Retention, folder_name
from trainer.config import CheckpointConfig
from trainer.processes.distributed import World


def alone() -> World:
    """A world of one rank."""
    return World(rank=0, size=1, device=torch.device("cpu"))


def some_parameters(step: int) -> dict[str, dict[str, Tensor]]:
    """Two parameters whose values tell the step."""
    generator = torch.Generator().manual_seed(step)
    found = {}
    for name, shape in (("block.w", (3, 4)), ("b", (5,))):
        weight = torch.randn(shape, generator=generator)
        moments = {"exp_avg": weight / 7, "exp_avg_sq": weight**2, "step": torch.tensor(float(step))}
        found[name] = {"weight": weight, **moments, "average": weight / 3}
    return found


def write_checkpoint(
    folder: Path,
    step: int,
    parameters: Mapping[str, Mapping[str, Tensor]] | None = None,
    state: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write one as rank 0 of 1 and wait for it. `config` holds fields of CheckpointConfig."""
    writer = CheckpointWriter(folder, alone(), Retention(folder, CheckpointConfig(**config)))
    tensors = {name: dict(kinds) for name, kinds in (parameters or some_parameters(step)).items()}
    writer.begin(step, tensors, {"cpu": torch.get_rng_state()}, json.dumps({"step": step, **(state or {})}))
    writer.wait()
    return folder / folder_name(step)
