"""One step of every objective on this rank's share of the prompts; `main` is run on two ranks, the rest with a world of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.rank_cases import find_cases
from tests.support.tiny_updates import ADV, PROMPTS, gradient, make_updater, policy_for, roll_out
from trainer.config import DistributedConfig
from trainer.objectives import Scored
from trainer.processes.distributed import World

WEIGHT = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0])  # the second rank has nothing to train on


def cases(pictures: Path) -> dict[str, dict[str, Any]]:
    """Configurations by name; a name that begins with `stale` trains on rollouts one update behind."""
    sft = {"path": str(pictures), "batch_size": 4, "coef": 0.5}
    return {
        "flow_grpo": {"kl_beta": 0.1},
        "stale": {"importance_cap": 2.0},
        "grpo_guard": {"objective": "grpo_guard", "guard_reweight": True},
        "diffusion_nft": {"objective": "diffusion_nft", "timestep_draws": 2, "old_decay": 0.5, "kl_beta": 0.1},
        "awm": {"objective": "awm", "timestep_draws": 2, "updates_per_rollout": 2, "clip_range": 0.1},
        "diffusion_dpo": {"objective": "diffusion_dpo", "timestep_draws": 2},
        "sft": {"sft": sft},
    }


def one_step(name: str, fields: dict[str, Any], group: World) -> tuple[Tensor, dict[str, float]]:
    """The gradient of the last update, summed over the ranks, and the metrics."""
    policy = policy_for(**fields)
    updater = make_updater(policy, lr=1e-5, world=group, **fields)
    share = len(PROMPTS) // group.size
    first = group.rank * share
    samples = slice(4 * first, 4 * (first + share))
    prompts, seeds = PROMPTS[first : first + share], list(range(8))[samples]
    rollouts = roll_out(policy, fields.get("objective", "flow_grpo"), 4, prompts=prompts, seeds=seeds)
    with torch.no_grad():
        policy.trainable.proj_out.weight.add_(0.002)
    if name.startswith("stale"):
        rollouts = [replace(rollout, behind=1) for rollout in rollouts]
    row = updater.step(Scored(rollouts, ADV[samples], WEIGHT[samples]), 0)
    return gradient(policy), row


def main(argv: list[str]) -> int:
    """Cases are names of `cases`; the folder has the pictures' `data.json`."""

    def find(name: str, group: World, folder: Path) -> dict[str, Any]:
        grad, row = one_step(name, cases(folder / "data.json")[name], group)
        return {"gradient": grad.tolist(), "row": row}

    return find_cases(argv, find, config=DistributedConfig(device="cpu"))
