"""Every objective raises the reward it is given: brightness of the picture, a few steps of a tiny policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.tiny_updates import make_updater, policy_for, roll_out
from trainer.objectives import Scored
from trainer.types import Rollout

CASES: dict[str, dict[str, Any]] = {
    "flow_grpo": {"clip_range": 1e-2},
    "grpo_guard": {"objective": "grpo_guard", "clip_range": 1e-2},
    "diffusion_nft": {"objective": "diffusion_nft", "timestep_draws": 2, "nft_beta": 1.0},
    "diffusion_nft_off_policy": {"objective": "diffusion_nft", "timestep_draws": 2, "nft_beta": 0.5, "old_decay": 0.3},
    "awm": {"objective": "awm", "timestep_draws": 2, "clip_range": 0.1},
    "diffusion_dpo": {"objective": "diffusion_dpo", "timestep_draws": 2, "dpo_beta": 200.0},
}
STEPS = 10


def brightness(rollouts: list[Rollout]) -> Tensor:
    """Mean pixel value of each sample, (2 groups, 4)."""
    samples = [sample for rollout in rollouts for sample in rollout.samples]
    return torch.tensor([np.asarray(sample.images[0], np.float32).mean() for sample in samples]).view(2, 4)


@pytest.mark.parametrize("name", CASES)
def test_the_reward_rises(name: str) -> None:
    """The same initial noises, without noise in between, give brighter pictures after training: seven of eight."""
    fields = CASES[name]
    policy = policy_for(**fields)
    updater = make_updater(policy, lr=2e-3, **fields)
    before = brightness(roll_out(policy, "awm"))
    for step in range(1, STEPS + 1):
        with updater.sampling_policy():
            rollouts = roll_out(policy, fields.get("objective", "flow_grpo"), seeds=range(100 * step, 100 * step + 8))
        reward = brightness(rollouts)
        adv = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
        updater.step(Scored(rollouts, adv.flatten(), torch.ones(8)), step)
    gain = brightness(roll_out(policy, "awm")) - before
    assert gain.mean() > 0.5
    assert (gain > 0).sum() >= 7
