"""Updates of a small tiny policy: a fresh policy, rollouts as an objective needs them, what an update left behind."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from trainer.config import DistributedConfig, ObjectiveConfig, OptimConfig, SftLossConfig, TinyConfig
from trainer.config.objective import OBJECTIVES
from trainer.data.captions import CaptionData
from trainer.engine import build_engine
from trainer.objectives import Objective, build_objective, needs_reference, plan_needs, with_supervised
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.flow.tiny import TinyFlow
from trainer.policies.flow.tiny_model import TinyModel
from trainer.processes.distributed import World
from trainer.samplers.flow_sde import Kind
from trainer.types import Prompt, Rollout
from trainer.update.old import old_policy
from trainer.update.updater import Updater

CPU = torch.device("cpu")
WORLD = World(rank=0, size=1, device=CPU)
PROMPTS = [Prompt("a", 'the word "K7QX" in red'), Prompt("b", 'the word "CAT" in blue')]
ADV = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.1, -0.1])
ONES = torch.ones(8)


def make_policy(*, keep_reference: bool = False) -> FlowPolicy:
    """Random weights, the same each time, none of them 0."""
    torch.manual_seed(0)
    model = TinyModel(TinyConfig(num_layers=2, num_heads=2, head_dim=16))
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return FlowPolicy(TinyFlow(model, CPU, about="random"), keep_reference=keep_reference)


def objective_config(objective: str = "flow_grpo", **fields: Any) -> ObjectiveConfig:
    """The section of an objective; fields of other sections are passed over."""
    others = ("updates_per_rollout", "sft")
    fields = {name: value for name, value in fields.items() if name not in others}
    config: Any = OBJECTIVES[objective].model_validate({"type": objective, **fields})
    return cast(ObjectiveConfig, config)


def policy_for(**fields: Any) -> FlowPolicy:
    """A fresh policy with a reference where the objective needs one."""
    return make_policy(keep_reference=needs_reference(objective_config(**fields)))


def make_updater(
    policy: FlowPolicy,
    *,
    lr: float = 1e-3,
    micro: int | None = None,
    world: World = WORLD,
    updates_per_rollout: int = 1,
    sft: SftLossConfig | Mapping[str, Any] | None = None,
    **fields: Any,
) -> Updater:
    """An updater that does not clip the gradient. `fields` are those of the objective, whose type is `objective`."""
    optim = OptimConfig(
        lr=lr,
        schedule="constant",
        micro_batch_size=micro,
        max_grad_norm=1e9,
        updates_per_rollout=updates_per_rollout,
    )
    beside = SftLossConfig.model_validate(sft) if isinstance(sft, Mapping) else sft
    engine = build_engine(policy.trainable, optim, DistributedConfig(), world)
    config = objective_config(**fields)
    main = build_objective(policy, config, micro_batch_size=micro, seed=1)
    objective: Objective = main
    if beside is not None:
        objective = with_supervised(
            main, policy, beside, CaptionData(beside, 1), 1, share=(world.rank, world.size), updates=updates_per_rollout
        )
    return Updater(objective, engine, optim, world, max_steps=10, old=old_policy(policy.trainable, config))


def drawn_again(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The same samples as if they had been drawn once more: an objective takes each only once."""
    return [replace(rollout, trace=copy.copy(rollout.trace)) for rollout in rollouts]


def roll_out(
    policy: FlowPolicy,
    objective: str = "flow_grpo",
    micro_batch_size: int = 8,
    *,
    kind: Kind = "flow_sde",
    prompts: Sequence[Prompt] = PROMPTS,
    seeds: Sequence[int] = range(8),
) -> list[Rollout]:
    """Four samples of each prompt, four denoising steps."""
    needs = plan_needs(objective)
    steps = () if needs.deterministic else (0, 1, 2)
    plan = SamplingPlan(
        4,
        micro_batch_size,
        kind,
        0.7,
        steps,
        steps,
        keep_means=needs.keep_means,
        keep_final=needs.keep_final,
    )
    return list(policy.sample(prompts, 4, seeds, plan))


def weights(policy: FlowPolicy) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.trainable.parameters()])


def gradient(policy: FlowPolicy) -> Tensor:
    """What the last update's backward passes added up to."""
    return torch.cat([p.grad.flatten() for p in policy.trainable.parameters() if p.grad is not None])
