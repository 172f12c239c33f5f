"""A gradient that is added up before the batch's factor is known is the gradient."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.support.early_steps import (
    AFTER,
    BOTH,
    GROUPS,
    NO_SPREAD,
    SCORES,
    SPREAD,
    VALID,
    all_scores,
    drawn_with,
    early_step,
    fed_by,
    of_batch,
    waiting_step,
)
from tests.support.tiny_updates import ONES, WORLD, drawn_again, gradient, make_updater, policy_for, roll_out, weights
from trainer.advantages import SCALED, WITHIN_GROUPS
from trainer.config.advantage import DrGrpoConfig, GdpoConfig, GrpoConfig, GrpoGlobalStdConfig
from trainer.objectives import Scored
from trainer.policies.flow.policy import FlowPolicy
from trainer.programs.early import EarlyUpdate, factor
from trainer.types import Rollout
from trainer.update.segments import SegmentedUpdate, segments

CASES: dict[str, dict[str, Any]] = {
    "flow_grpo": {},
    "two updates": {"updates_per_rollout": 2},
    "grpo_guard": {"objective": "grpo_guard", "guard_reweight": True},
    "awm": {"objective": "awm", "timestep_draws": 2},
}


def of_groups(scores: Tensor = SCORES) -> tuple[Tensor, Tensor]:
    return WITHIN_GROUPS["gdpo"](scores, VALID, GROUPS, BOTH)


def ordinary(
    fields: dict[str, Any], sampled: int, micro: int | None, clip: float
) -> tuple[FlowPolicy, dict[str, float]]:
    policy = policy_for(**fields)
    rollouts = roll_out(policy, fields.get("objective", "flow_grpo"), sampled)
    return policy, make_updater(policy, micro=micro, **fields).step(Scored(rollouts, *of_batch(clip)), 0)


@pytest.mark.parametrize("clip", [pytest.param(5.0, marks=pytest.mark.slow), 1.0])
@pytest.mark.parametrize(
    ("sampled", "micro"),
    [(4, None), (2, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2, None), (8, None)))],
)
@pytest.mark.parametrize(
    "name", [name if name == "flow_grpo" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_segmented_update_is_the_ordinary_one(name: str, sampled: int, micro: int | None, clip: float) -> None:
    """Samples without a score, advantages beyond the clip, several updates, whole and halved groups."""
    fields = CASES[name]
    expected, row = ordinary(fields, sampled, micro, clip)
    policy = policy_for(**fields)
    rollouts = roll_out(policy, fields.get("objective", "flow_grpo"), sampled)
    update = SegmentedUpdate(make_updater(policy, micro=micro, **fields), 0)
    within, weight = of_groups()
    scale = factor(within, of_batch(clip)[0], clip, WORLD)
    assert scale is not None
    over = bool((scale * within.abs() > clip).any())
    assert over == (clip == 1.0)
    cuts, first = segments(rollouts, micro), 0
    for cut in cuts:
        rows = slice(first, first + sum(len(each) for each in rollouts[cut]))
        update.add(Scored(rollouts[cut], within[rows], weight[rows]), last=rows.stop == 8 and not over)
        first = rows.stop
    if over:
        update.clamp(scale, clip)
    found = update.finish(scale, clip)
    size = gradient(expected).abs().max().item()
    if name != "two updates":  # whose gradient is the second one's
        counted = max(update.counts["terms"], 1.0)
        torch.testing.assert_close(gradient(policy), gradient(expected), rtol=1e-5, atol=1e-6 * size)
        assert counted > 1
    moved = (weights(expected) - weights(policy_for(**fields))).abs().max().item()
    torch.testing.assert_close(
        weights(policy), weights(expected), rtol=0, atol=1e-2 * moved
    )  # Adam lifts rounding where a gradient is near 0
    assert found.keys() == row.keys()
    for key, value in row.items():
        assert found[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize(
    ("sizes", "groups", "size", "expected"),
    [
        ((4, 4, 4), (0, 1, 2), None, [slice(0, 1), slice(1, 2), slice(2, 3)]),
        ((2, 2, 2, 2), (0, 0, 1, 1), None, [slice(0, 2), slice(2, 4)]),
        ((4, 4, 4), (0, 1, 2), 8, [slice(0, 2), slice(2, 3)]),
        ((4, 4, 4), (0, 1, 2), 6, [slice(0, 3)]),
        ((8,), (0,), 2, [slice(0, 1)]),
    ],
)
def test_segments_are_whole_groups_and_whole_micro_batches(
    sizes: tuple[int, ...], groups: tuple[int, ...], size: int | None, expected: list[slice]
) -> None:
    class Sized(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.group_B)

    rollouts = [Sized(group_B=torch.full((n,), g)) for n, g in zip(sizes, groups, strict=True)]
    assert segments(cast("list[Rollout]", rollouts), size) == expected


def test_what_arrives_when_changes_no_bit() -> None:
    waited, row, none = early_step(0)
    hidden, other, one = early_step(8)  # the last segment always waits for the batch
    assert (none, one) == (0, 1)
    assert torch.equal(weights(waited), weights(hidden)) and row == other


def test_a_score_that_changes_after_it_was_used_is_used_as_it_is_in_the_end() -> None:
    waited, row, _ = early_step(0)
    changed, other, added = early_step(8, all_scores(SCORES.flip(0)))
    assert added == 1
    assert torch.equal(weights(waited), weights(changed)) and row == other


def test_advantages_that_are_no_multiple_are_taken_as_they_are() -> None:
    """Whatever the estimator says holds, also where it should be a multiple and is not."""
    policy = policy_for()
    rollouts = roll_out(policy, "flow_grpo", 4)
    adv, weight = torch.tensor([1.0, -1, 2, 0.5, 0.3, -0.2, 0.1, -2]), ONES
    drawn = drawn_with(GdpoConfig(), rollouts, all_scores(), 8)
    early = EarlyUpdate(make_updater(policy), drawn, WORLD, 0, NO_SPREAD)
    assert early.advance()
    early.finish(all_scores(), Scored(rollouts, adv, weight), AFTER)
    expected = policy_for()
    make_updater(expected).step(Scored(drawn_again(roll_out(expected, "flow_grpo", 4)), adv, weight), 0)
    size = gradient(expected).abs().max().item()
    torch.testing.assert_close(gradient(policy), gradient(expected), rtol=1e-5, atol=1e-6 * size)


def test_a_batch_in_which_all_scores_are_alike_moves_nothing() -> None:
    same = torch.full_like(SCORES, 0.5)
    policy = policy_for()
    before = weights(policy)
    drawn = drawn_with(GdpoConfig(), roll_out(policy, "flow_grpo", 4), all_scores(same), 8)
    early = EarlyUpdate(make_updater(policy), drawn, WORLD, 0, NO_SPREAD)
    early.advance()
    row = early.finish(all_scores(same), Scored(drawn.rollouts, *of_batch(scores=same)), AFTER)
    assert row["grad_norm"] == 0 and torch.equal(weights(policy), before)


def test_the_factor_is_found_where_nothing_was_clamped() -> None:
    within = torch.tensor([0.5, -0.25, 4.0, 0.0])
    assert factor(within, (3 * within).clamp(-5, 5), 5.0, WORLD) == 3.0
    assert factor(within, 3 * within + torch.tensor([0, 0, 0, 0.1]), 50.0, WORLD) is None
    assert factor(0 * within, 0 * within, 5.0, WORLD) == 1.0
    assert factor(within, within, 5.0, WORLD) == 1.0


@pytest.mark.parametrize(
    "config",
    [
        GdpoConfig(std_floor=1.0),
        GdpoConfig(std_floor=1.0, adv_clip=1.0),
        GrpoConfig(type="grpo", std_floor=1.0, adv_clip=0.7),
        DrGrpoConfig(type="dr_grpo", adv_clip=0.2),
        GrpoGlobalStdConfig(type="grpo_global_std", adv_clip=0.7),
    ],
    ids=["gdpo", "gdpo clamped", "grpo clamped", "dr_grpo clamped", "grpo_global_std clamped"],
)
def test_the_early_gradient_is_that_of_a_step_that_waits(config: Any) -> None:
    """With a floor that acts and, where no factor comes from the batch, a KL. Samples 5 to 8 lack a score or both."""
    kl_beta = 0.0 if config.type in SCALED else 0.5
    fields = {"kl_beta": kl_beta}
    policy, row, added = early_step(8, config=config, spread=SPREAD, **fields)
    assert added == 1
    with_floor, without = fed_by(config, SPREAD, [], all_scores()), of_batch(config.adv_clip, type=config.type)[0]
    assert (config.std_floor > 0) == bool((with_floor.adv_B - without).abs().max() > 0.01)
    expected, other = waiting_step(config, SPREAD, **fields)
    size = gradient(expected).abs().max().item()
    torch.testing.assert_close(gradient(policy), gradient(expected), rtol=1e-5, atol=1e-6 * size)
    assert row.keys() == other.keys()
    for key, value in other.items():
        assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_a_reward_without_a_spread_waits_for_the_step_that_gives_it_one() -> None:
    config = GdpoConfig(std_floor=1.0)
    assert early_step(8, config=config, spread=NO_SPREAD)[2] == 0
    assert early_step(8, config=config, spread=SPREAD)[2] == 1
    waited, row, _ = early_step(0, config=config, spread=SPREAD)
    hidden, other, _ = early_step(8, config=config, spread=SPREAD)
    assert torch.equal(weights(waited), weights(hidden)) and row == other


def test_estimators_that_need_no_batch_have_the_factor_one() -> None:
    _, row, _ = early_step(8, config=DrGrpoConfig(type="dr_grpo"))
    expected = policy_for()
    rollouts = roll_out(expected, "flow_grpo", 2)
    other = make_updater(expected).step(Scored(rollouts, *of_batch(type="dr_grpo")), 0)
    assert row["loss/policy"] == pytest.approx(other["loss/policy"], rel=1e-5)
    assert row.keys() == other.keys()
