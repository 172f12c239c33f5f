"""DeepGen's supervised layout as files: one safetensors file, or a .pt file for programs that read only that."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from trainer.config import ConfigError, DeepGenConfig
from trainer.config.paths import located
from trainer.policies.flow.deepgen.checkpoint import open_checkpoint
from trainer.policies.flow.deepgen.export import deepgen_state_dict
from trainer.policies.flow.deepgen.model import DeepGenFlow
from trainer.policies.registry import Exporter

FILE = "model.safetensors"
PICKLED_FILE = "model.pt"


def write(model: DeepGenFlow, folder: Path, dtype: torch.dtype) -> None:
    """Write `model.safetensors`."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in deepgen_state_dict(model).items()}
    save_file(tensors, str(folder / FILE))


def write_pickled(model: DeepGenFlow, folder: Path, dtype: torch.dtype) -> None:
    """Write `model.pt`: tensors by name and nothing else, so that torch.load(weights_only=True) reads it."""
    tensors = {name: tensor.to(dtype).clone() for name, tensor in deepgen_state_dict(model).items()}
    torch.save(tensors, folder / PICKLED_FILE)


def reload(config: DeepGenConfig, folder: Path, device: torch.device) -> DeepGenFlow:
    """The policy that starts from the folder, with the language model that the run started with."""
    config = located(config)
    started_from = config.lmm_checkpoint
    if started_from is None:
        if config.checkpoint is None:
            raise ConfigError("policy.checkpoint is missing in the run's config.yaml: give what the run started from")
        names = open_checkpoint(Path(config.checkpoint))
        started_from = config.checkpoint if any(name.startswith("lmm.") for name in names) else None
    changed = {"checkpoint": str(folder), "lmm_checkpoint": started_from, "lora": None}
    return DeepGenFlow(config.model_copy(update=changed), device)


EXPORTERS = {"deepgen": Exporter(write, reload), "deepgen_pt": Exporter(write_pickled, reload)}
