"""One step of every objective on this rank's share of the prompts; `main` is run on two ranks, the rest with a world of one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.tiny_updates import ADV, PROMPTS, gradient, make_updater, policy_for, roll_out
from trainer.config import DistributedConfig
from trainer.objectives import Scored
from trainer.processes.distributed import World, world

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
    """`argv`: the folder of what is found, and the file of pictures."""
    out, pictures = map(Path, argv)
    torch.set_num_threads(1)
    with world(DistributedConfig(device="cpu")) as group:
        results = {name: one_step(name, fields, group) for name, fields in cases(pictures).items()}
    if group.is_main:
        save_file({name: grad.contiguous() for name, (grad, _) in results.items()}, str(out / "gradients.safetensors"))
        (out / "rows.json").write_text(json.dumps({name: row for name, (_, row) in results.items()}))
    return 0
