"""The policy `vlm`: any image-text-to-text model of transformers, or one of nanoVLM's."""

from __future__ import annotations

import torch

from trainer.config import VlmConfig
from trainer.policies.registry import Entry
from trainer.policies.tokens.exporting import EXPORTERS
from trainer.policies.tokens.family import TOKENS
from trainer.policies.tokens.loading import load
from trainer.policies.tokens.model import TokenModel
from trainer.policies.tokens.preparing import prepare
from trainer.policies.tokens.sizes import sizes


def build(config: VlmConfig, device: torch.device) -> TokenModel:
    """The model with its processor, made ready for training. Raises ConfigError with the remedy."""
    network, processor, about = load(config)
    return TokenModel(prepare(network, processor, config, device), processor, config, device, about=about)


ENTRY = Entry(
    family=TOKENS,
    build=build,
    exporters=EXPORTERS,
    sizes=sizes,
    may_be_random=True,
    how_made="or leave it out and have policy.initialize make a fresh one",
)
