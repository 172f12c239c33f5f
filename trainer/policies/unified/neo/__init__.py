"""The policy `neo`: a native vision-language model, which reads patches and words by one transformer (NEO, arXiv 2510.14979)."""

from __future__ import annotations

import torch

from trainer.config import Config
from trainer.config.neo import NeoConfig
from trainer.policies.placing import place
from trainer.policies.registry import Entry, Family
from trainer.policies.tokens.plans import check_plans, comparison_plan, evaluation_plan, training_plan
from trainer.policies.unified.neo.exporting import EXPORTERS
from trainer.policies.unified.neo.files import load
from trainer.policies.unified.neo.memory import working_bytes
from trainer.policies.unified.neo.model import NeoModel
from trainer.policies.unified.neo.policy import NeoPolicy
from trainer.policies.unified.neo.sizes import sizes
from trainer.policies.unified.neo.stages import is_trained


def build(config: NeoConfig, device: torch.device) -> NeoModel:
    """The model with its tokenizer, what its stage trains marked. Raises ConfigError with the remedy."""
    network, processor, fields, about = load(config)
    place(network.eval(), device)
    network.recomputes = config.gradient_checkpointing
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(is_trained(name, config, network.geometry))
    return NeoModel(network, processor, config, device, fields=fields, about=about)


def _check_plans(config: Config, policy: NeoPolicy) -> None:
    check_plans(config, policy.texts)


NEO = Family(
    policy=NeoPolicy,
    check_plans=_check_plans,
    training_plan=training_plan,
    evaluation_plan=evaluation_plan,
    comparison_plan=comparison_plan,
)
ENTRY = Entry(
    family=NEO,
    build=build,
    exporters=EXPORTERS,
    sizes=sizes,
    working=working_bytes,
    how_made="or leave it out and have policy.grow grow one from a Qwen3",
)
