"""The policy `janus`: Janus and Janus-Pro, by transformers' own classes."""

from __future__ import annotations

import torch

from trainer.config import JanusConfig
from trainer.policies.registry import Entry
from trainer.policies.tokens.exporting import EXPORTERS
from trainer.policies.tokens.hub import local_folder
from trainer.policies.tokens.loading import from_transformers
from trainer.policies.tokens.preparing import prepare
from trainer.policies.tokens.sizes import sizes
from trainer.policies.unified.family import UNIFIED
from trainer.policies.unified.janus.model import JanusModel, part_of


def build(config: JanusConfig, device: torch.device) -> JanusModel:
    """The model with its processor, made ready for training. Raises ConfigError with the remedy."""
    folder = local_folder(config.pretrained, "policy.pretrained")
    network, processor = from_transformers(folder)
    prepared = prepare(network, processor, config, device, part_of)
    return JanusModel(prepared, processor, config, device, about=f"Started from {config.pretrained}.")


ENTRY = Entry(
    family=UNIFIED,
    build=build,
    exporters={name: EXPORTERS[name] for name in ("hf", "lora")},
    sizes=sizes,
)
