"""The objectives, by the name that `objective.type` gives."""

from __future__ import annotations

from typing import cast

from trainer.config import ObjectiveConfig, SftLossConfig
from trainer.config.preference_objective import DpoConfig
from trainer.objectives.base import Batch, Entry, Objective, PlanNeeds, Scored, Term, check_capability, total
from trainer.objectives.flow.forward import FORWARD
from trainer.objectives.flow.grpo import STOCHASTIC
from trainer.objectives.flow.supervised import Captions, Supervised
from trainer.objectives.own import OWN, check_objective_code
from trainer.objectives.sum import Sum
from trainer.objectives.tokens.policy import TOKENS
from trainer.policies.base import Denoises, Policy

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Captions",
    "Objective",
    "PlanNeeds",
    "Scored",
    "Supervised",
    "Term",
    "build_objective",
    "check_objective_code",
    "needs_reference",
    "plan_needs",
    "total",
    "with_supervised",
]


OBJECTIVES: dict[str, Entry] = {**STOCHASTIC, **FORWARD, **TOKENS, **OWN}


def build_objective(policy: Policy, config: ObjectiveConfig, *, micro_batch_size: int | None, seed: int) -> Objective:
    """The objective that `config.type` names.

    Raises:
        ValueError: the policy lacks what the objective trains through; both are named.
    """
    entry = OBJECTIVES[config.type]
    check_capability(policy, f"objective.type = {config.type}", entry.build.requires)
    objective: Objective = entry.build(policy, config, micro_batch_size=micro_batch_size, seed=seed)
    return objective


def with_supervised(
    main: Objective,
    policy: Policy,
    config: SftLossConfig,
    captions: Captions,
    seed: int,
    *,
    share: tuple[int, int],
    updates: int,
) -> Objective:
    """An objective with the supervised loss of `sft` beside it: (1 - coef) * main + coef * supervised.

    Args:
        captions: images with their texts.
        share: (r, n): this is rank r of n.
        updates: optimizer steps of a training step.

    Raises:
        ConfigError: the images cannot be used, or not be shared among the ranks.
        ValueError: the policy does not denoise.
    """
    check_capability(policy, "sft", Supervised.requires)
    supervised = Supervised(cast(Denoises, policy), config, captions, seed, share=share, updates=updates)
    return Sum(main, [(config.coef, supervised)])


def plan_needs(objective: str) -> PlanNeeds:
    """What `objective` asks of the sampling plan."""
    return OBJECTIVES[objective].needs


def needs_reference(config: ObjectiveConfig) -> bool:
    """Whether the policy must keep its starting weights."""
    if isinstance(config, DpoConfig):
        return config.reference == "kept"
    return config.kl_beta > 0 or OBJECTIVES[config.type].reference
