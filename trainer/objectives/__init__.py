"""The objectives, by the name that `objective.type` gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.config import ObjectiveConfig
from trainer.objectives.base import Batch, Chunk, Objective, PlanNeeds
from trainer.objectives.forward import Awm, DiffusionDpo, DiffusionNft
from trainer.objectives.grpo import FlowGrpo, GrpoGuard
from trainer.objectives.supervised import Supervised
from trainer.policies.base import Policy

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Chunk",
    "Objective",
    "PlanNeeds",
    "Supervised",
    "build_objective",
    "needs_reference",
    "plan_needs",
]


@dataclass(frozen=True)
class Entry:
    """An objective and what it needs of its surroundings."""

    build: Callable[..., Objective]
    needs: PlanNeeds
    reference: bool = False  # even without a KL


_FORWARD = PlanNeeds(keep_final=True, deterministic=True)

OBJECTIVES: dict[str, Entry] = {
    "flow_grpo": Entry(FlowGrpo, PlanNeeds()),
    "grpo_guard": Entry(GrpoGuard, PlanNeeds(keep_means=True)),
    "diffusion_nft": Entry(DiffusionNft, _FORWARD),
    "awm": Entry(Awm, _FORWARD),
    "diffusion_dpo": Entry(DiffusionDpo, _FORWARD, reference=True),
}


def build_objective(policy: Policy, config: ObjectiveConfig, *, micro_batch_size: int | None, seed: int) -> Objective:
    """The objective that `config.type` names."""
    return OBJECTIVES[config.type].build(policy, config, micro_batch_size=micro_batch_size, seed=seed)


def plan_needs(objective: str) -> PlanNeeds:
    """What `objective` asks of the sampling plan."""
    return OBJECTIVES[objective].needs


def needs_reference(config: ObjectiveConfig) -> bool:
    """Whether the policy must keep its starting weights."""
    return config.kl_beta > 0 or OBJECTIVES[config.type].reference
