"""What has no gradient is not computed, and the step is the same: the same gradient, the same divisor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_updates import ADV, ONES, gradient, make_updater, policy_for, roll_out, weights
from trainer.objectives import Scored
from trainer.objectives.base import RolloutBatch, micro_batches
from trainer.objectives.flow import forward, grpo
from trainer.policies.flow.policy import FlowPolicy

HALF = torch.tensor([1.0, 0, 0, -0.5, 0, 0, 2.0, 0])
MASK = torch.tensor([1.0, 1, 0, 1, 1, 0, 0, 1])

# By name: the objective, and how many of the eight samples are computed.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "flow_grpo": ({}, 2),
    "grpo_guard": ({"objective": "grpo_guard", "guard_reweight": True}, 2),
    "awm": ({"objective": "awm", "timestep_draws": 2}, 2),
    "a KL acts on every sample of a weight": ({"kl_beta": 0.1, "kl_type": "latent"}, 5),
    "so does the KL to the sampling policy": (
        {"objective": "awm", "timestep_draws": 2, "old_decay": 0.5, "old_kl_beta": 0.1},
        5,
    ),
    "as good as bad holds the velocity": ({"objective": "diffusion_nft", "timestep_draws": 2}, 5),
}


def step(fields: dict[str, Any], micro: int | None, sampled: int = 4) -> tuple[FlowPolicy, dict[str, float]]:
    policy = policy_for(**fields)
    rollouts = roll_out(policy, fields.get("objective", "flow_grpo"), sampled)
    with torch.no_grad():
        policy.trainable.proj_out.weight.add_(0.002)
    return policy, make_updater(policy, micro=micro, **fields).step(Scored(rollouts, HALF, MASK), 0)


def everything(
    fed: Scored, acts_B: Tensor, step: int, size: int | None, count: Any, *, policy: Any
) -> list[RolloutBatch]:
    return micro_batches(fed, step, size)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("micro", [None, 3])
def test_the_gradient_is_that_of_all_samples(name: str, micro: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    fields, computed = CASES[name]
    less, row = step(fields, micro)
    for module in (grpo, forward):
        monkeypatch.setattr(module, "with_gradient", everything)
    more, other = step(fields, micro)
    assert (row["skipped_share"], other["skipped_share"]) == (1 - computed / 8, 0)
    scale = gradient(more).abs().max().item()
    torch.testing.assert_close(gradient(less), gradient(more), rtol=1e-4, atol=1e-5 * scale)
    assert gradient(more).norm() > 0
    for key in ("loss/policy", "loss/kl", "kl"):
        assert row[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize(("micro", "sizes"), [(None, [4, 1]), (2, [2, 2, 1]), (8, [5])])
def test_what_is_left_fills_the_micro_batches(micro: int | None, sizes: list[int]) -> None:
    """Fewer passes, not smaller ones."""
    policy = policy_for(objective="flow_grpo")
    updater = make_updater(policy, micro=micro, objective="flow_grpo")
    adv = torch.where(torch.arange(8) < 3, 0.0, ADV)
    batches = updater.objective.batches(Scored(roll_out(policy, "flow_grpo", 4), adv, ONES), 0)
    assert [len(batch.rollout) for batch in batches] == sizes
    names = [sample.id for batch in batches for sample in batch.rollout.samples]
    assert names == [sample.id for rollout in roll_out(policy, "flow_grpo", 4) for sample in rollout.samples][3:]
    assert torch.cat([batch.adv_B for batch in batches]).tolist() == adv[3:].tolist()


def test_where_all_have_one_nothing_is_put_together_anew() -> None:
    """The micro-batches are the sampled ones themselves, so the replay is the rollout bit for bit."""
    policy = policy_for(objective="flow_grpo")
    rollouts = roll_out(policy, "flow_grpo", 4)
    batches = make_updater(policy, objective="flow_grpo").objective.batches(Scored(rollouts, ADV, ONES), 0)
    assert [batch.rollout for batch in batches] == rollouts
    assert not any(batch.rollout.resized for batch in batches)


@pytest.mark.parametrize("fields", [{}, {"kl_beta": 0.1}, {"objective": "diffusion_dpo"}])
def test_a_step_in_which_none_has_one_is_one_small_pass_and_moves_nothing(fields: dict[str, Any]) -> None:
    """Ranks compute together, so each has something to compute."""
    policy = policy_for(**fields)
    rollouts = roll_out(policy, fields.get("objective", "flow_grpo"), 4)
    updater, before = make_updater(policy, **fields), weights(policy)
    batches = updater.objective.batches(Scored(rollouts, ADV, 0 * ONES), 0)
    assert [len(batch.rollout) for batch in batches] in ([1], [2])
    updater = make_updater(policy, **fields)
    row = updater.step(Scored(rollouts, ADV, 0 * ONES), 0)
    assert row["skipped_share"] >= 0.75 and row["loss/policy"] == 0
    assert torch.equal(weights(policy), before)


def test_a_group_without_a_pair_is_not_computed() -> None:
    """Preference pairs: the best and the worst of each group; a group in which all are alike has neither."""
    fields: dict[str, Any] = {"objective": "diffusion_dpo", "timestep_draws": 2}
    policy = policy_for(**fields)
    rollouts, adv = roll_out(policy, "diffusion_dpo", 4), torch.tensor([1.0, -1, 0, 0, 0, 0, 0, 0])
    (batch,) = make_updater(policy, **fields).objective.batches(Scored(rollouts, adv, ONES), 0)
    assert (len(batch.rollout), batch.idle, batch.weight_N.tolist()) == (2, 6, [1.0])


@pytest.mark.parametrize(("adv", "kept"), [([0.0] * 4 + [1, 0, 0, -1], [1]), ([0.0] * 8, [0]), ([0.0, 1] * 4, [0, 1])])
def test_micro_batches_stay_whole_where_samples_depend_on_their_neighbours(adv: list[float], kept: list[int]) -> None:
    """DeepGen's padded conditioning: a prompt is read with the padding that the longest of its micro-batch asks for."""
    policy = policy_for(objective="flow_grpo")
    policy.reads_neighbours = True
    rollouts = roll_out(policy, "flow_grpo", 4)
    batches = make_updater(policy, objective="flow_grpo").objective.batches(
        Scored(rollouts, torch.tensor(adv), ONES), 0
    )
    assert [batch.rollout for batch in batches] == [rollouts[n] for n in kept]
