"""The policy `vlm`: any image-text-to-text model of transformers, from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config import ConfigError, VlmConfig
from trainer.policies.registry import Entry, Exporter, Sizes
from trainer.policies.sizes import count, shapes_of
from trainer.policies.tokens.family import TOKENS
from trainer.policies.tokens.model import TokenModel
from trainer.policies.tokens.parts import part_of


def build(config: VlmConfig, device: torch.device) -> TokenModel:
    """The model of the folder with its processor, made ready for training. Raises ConfigError with the remedy."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    place = f"policy.pretrained = {config.pretrained}"
    if not Path(config.pretrained).is_dir():
        raise ConfigError(
            f"{place} is no folder; give one with config.json, model.safetensors, a processor and a tokenizer"
        )
    kind: Any = AutoModelForImageTextToText
    try:
        network, found = kind.from_pretrained(
            config.pretrained,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        processor = AutoProcessor.from_pretrained(config.pretrained, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{place} cannot be loaded: {error}") from error
    if missing := sorted(found["missing_keys"]):  # would stay random
        raise ConfigError(
            f"{place} lacks {len(missing)} weights, first {missing[0]}: save or download the folder again"
        )
    return TokenModel(
        prepare(network, config, device), processor, config, device, about=f"Started from {config.pretrained}."
    )


def prepare(network: Any, config: VlmConfig, device: torch.device) -> nn.Module:
    """The network on its device, with the parts that `freeze` names left as they are. Dropout is off."""
    network.eval().to(device).requires_grad_(True)
    if config.gradient_checkpointing:
        network.gradient_checkpointing_enable()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(part_of(name) not in config.freeze)
    prepared: nn.Module = network
    return prepared


def write(model: TokenModel, folder: Path, dtype: torch.dtype) -> None:
    """The model, its processor and its tokenizer, as transformers saves them."""
    network: Any = model.network
    network.to(dtype).save_pretrained(folder)
    model.processor.save_pretrained(folder)


def reload(config: VlmConfig, folder: Path, device: torch.device) -> TokenModel:
    """The policy that starts from the folder."""
    return build(config.model_copy(update={"pretrained": str(folder)}), device)


def sizes(config: VlmConfig) -> Sizes:
    """The sizes of the model in the folder."""
    return Sizes(count(shapes_of(Path(config.pretrained))), network=0, others=0)


ENTRY = Entry(family=TOKENS, build=build, exporters={"hf": Exporter(write, reload)}, sizes=sizes)
