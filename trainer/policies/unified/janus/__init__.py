"""The policy `janus`: Janus and Janus-Pro, by transformers' own classes."""

from __future__ import annotations

import torch

from trainer.config import JanusConfig
from trainer.policies.registry import Entry
from trainer.policies.tokens.preparing import prepare
from trainer.policies.unified.family import UNIFIED
from trainer.policies.unified.janus.exporting import EXPORTERS
from trainer.policies.unified.janus.loading import load
from trainer.policies.unified.janus.memory import working_bytes
from trainer.policies.unified.janus.model import JanusModel, part_of
from trainer.policies.unified.janus.sizes import sizes


def build(config: JanusConfig, device: torch.device) -> JanusModel:
    """The model with its processor, made ready for training. Raises ConfigError with the remedy."""
    network, processor, about = load(config)
    prepared = prepare(network, processor, config, device, part_of)
    return JanusModel(prepared, processor, config, device, about=about)


ENTRY = Entry(family=UNIFIED, build=build, exporters=EXPORTERS, sizes=sizes, working=working_bytes)
