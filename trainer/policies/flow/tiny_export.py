"""The tiny policy as one safetensors file, which `policy.checkpoint` takes again."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from trainer.config import TinyConfig
from trainer.policies.flow.tiny import TinyFlow

FILE = "model.safetensors"


def write(model: TinyFlow, folder: Path, dtype: torch.dtype) -> None:
    """Transformer, text encoder and codec."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.model.state_dict().items()}
    save_file(tensors, str(folder / FILE), metadata={"about": f"Post-trained by RL. Before that: {model.about}"})


def reload(config: TinyConfig, folder: Path, device: torch.device) -> TinyFlow:
    """The policy that starts from the file."""
    return TinyFlow.build(config.model_copy(update={"checkpoint": str(folder / FILE)}), device)
