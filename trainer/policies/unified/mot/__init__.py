"""The policy `mot`: a Mixture-of-Transformers in BAGEL's layout, which reads texts and images, writes, and draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from trainer.config.mot import MotConfig
from trainer.policies.flow.family import FLOW
from trainer.policies.registry import Entry
from trainer.policies.unified.mot.exporting import EXPORTERS
from trainer.policies.unified.mot.loading import load
from trainer.policies.unified.mot.memory import working_bytes
from trainer.policies.unified.mot.model import MotModel
from trainer.policies.unified.mot.plans import check_plans, evaluation_plan, training_plan
from trainer.policies.unified.mot.policy import MotPolicy
from trainer.policies.unified.mot.sizes import sizes


def build(config: MotConfig, device: torch.device) -> MotModel:
    """The model, made ready for training. Raises ConfigError with the remedy."""
    network, codec, words, about = load(config, device)
    base = None if config.pretrained is None else Path(config.pretrained)
    return MotModel(network, codec, words, config, device, about=about, base=base)


MOT = replace(
    FLOW, policy=MotPolicy, check_plans=check_plans, training_plan=training_plan, evaluation_plan=evaluation_plan
)
ENTRY = Entry(family=MOT, build=build, exporters=EXPORTERS, sizes=sizes, working=working_bytes, may_be_random=True)
