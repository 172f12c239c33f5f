"""A trained native model as NEO's own programs read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.config.neo import NeoConfig
from trainer.policies.registry import Exporter, build_model
from trainer.policies.unified.neo.files import write_folder
from trainer.policies.unified.neo.model import NeoModel


def write(model: NeoModel, folder: Path, dtype: torch.dtype) -> None:
    """NEO's config.json and model.safetensors, with the tokenizer beside."""
    write_folder(model.network, model.processor, model.fields, folder, dtype)


def reload(config: NeoConfig, folder: Path, device: torch.device) -> Any:
    """The policy that starts from the folder."""
    return build_model(config.model_copy(update={"pretrained": str(folder), "grow": None}), device)


EXPORTERS = {"neo": Exporter(write, reload)}
