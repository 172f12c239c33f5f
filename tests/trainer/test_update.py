"""The update: ratios of exactly 1, accumulation that accumulates, one denominator, refusal of what is not finite."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.tiny_updates import ADV, ONES, PROMPTS, gradient, make_policy, make_updater, roll_out, weights
from trainer.advantages import without_flat_groups
from trainer.config import OptimConfig
from trainer.objectives import Scored
from trainer.policies.base import SamplingPlan
from trainer.records.recorder import plain_numbers
from trainer.samplers.flow_sde import Kind
from trainer.types import StopTrainingError
from trainer.update.schedule import learning_rate


@pytest.mark.parametrize("micro", [None, 1, 2, 3])
def test_before_the_first_update_every_ratio_is_exactly_one(micro: int | None) -> None:
    policy = make_policy()
    row = make_updater(policy, micro=micro).step(Scored(roll_out(policy), ADV, ONES), 0)
    assert row["ratio/min"] == row["ratio/mean"] == row["ratio/max"] == 1.0
    assert row["clip_share"] == 0.0
    assert row["ratio/replay_error"] == pytest.approx(0.0, abs=1e-6)


def test_means_of_a_step_without_any_sample_that_counts_are_no_numbers() -> None:
    """As the extremes are none: the row has null, where 0 would be a ratio. The weights stay."""
    policy = make_policy()
    before = weights(policy).clone()
    row = make_updater(policy).step(Scored(roll_out(policy), ADV, 0 * ONES), 0)
    written = plain_numbers(row)
    means = ("ratio/mean", "ratio/std", "clip_share", "ratio/min", "ratio/max")
    assert {key: written[key] for key in means} == dict.fromkeys(means)
    assert written["loss/policy"] == written["grad_norm"] == 0.0
    assert torch.equal(weights(policy), before)


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(("stochastic", "trained"), [((0, 1, 2), (1,)), ((1, 2), (1, 2)), ((1, 2), (2,))])
@pytest.mark.parametrize("kind", ["flow_sde", "cps", "dance_sde"])
def test_the_first_ratio_is_one_for_every_sampler(
    kind: Kind, stochastic: tuple[int, ...], trained: tuple[int, ...], guidance: float, micro: int | None
) -> None:
    """Windows, a share of the steps, guidance, a KL beside it and regrouped micro-batches: still exactly 1."""
    policy = make_policy(keep_reference=True)
    plan = SamplingPlan(4, 4, kind, 0.7, stochastic, trained, guidance_scale=guidance, shift=2.0)
    batch = list(policy.sample(PROMPTS, 4, range(8), plan))
    row = make_updater(policy, micro=micro, kl_beta=0.1).step(Scored(batch, ADV, ONES), 0)
    assert row["ratio/min"] == row["ratio/mean"] == row["ratio/max"] == 1.0
    if micro is None:
        assert row["ratio/replay_error"] == 0.0


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_splitting_does_not_change_a_step_with_masks_and_a_kl(micro: int) -> None:
    whole, split = make_policy(keep_reference=True), make_policy(keep_reference=True)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    rows = []
    for policy, size in ((whole, None), (split, micro)):
        batch = roll_out(policy, micro_batch_size=4)
        with torch.no_grad():
            policy.trainable.proj_out.weight.add_(0.01)
        rows.append(make_updater(policy, micro=size, kl_beta=0.5, clip_range=10.0).step(Scored(batch, ADV, weight), 0))
    assert rows[0]["kl"] > 0
    assert rows[0]["kl"] == pytest.approx(rows[1]["kl"], rel=1e-4)
    torch.testing.assert_close(gradient(split), gradient(whole), rtol=1e-3, atol=1e-6)


def test_flat_groups_change_how_the_policy_term_stands_to_the_kl() -> None:
    """One of two groups is flat. With it the policy term is half of what it is without, at about the same KL: its gradient is
    that of the other group alone only where the flat group is left out."""
    flat = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0, 0.0, 0.0, 0.0])
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])

    def step(adv: torch.Tensor, weight: torch.Tensor, rows: int) -> tuple[dict[str, float], torch.Tensor]:
        policy = make_policy(keep_reference=True)
        batch = roll_out(policy, micro_batch_size=4)[: rows // 4]
        with torch.no_grad():
            policy.trainable.proj_out.weight.add_(0.01)  # away from the reference and from what sampled
        row = make_updater(policy, kl_beta=0.5, clip_range=10.0).step(Scored(batch, adv[:rows], weight[:rows]), 0)
        return row, gradient(policy)

    kept, kept_gradient = step(flat, ONES, 8)
    skipped, skipped_gradient = step(flat, without_flat_groups(flat, ONES, group), 8)
    alone, alone_gradient = step(flat, ONES, 4)
    assert skipped["loss/policy"] == pytest.approx(2 * kept["loss/policy"], rel=1e-4)
    assert skipped["kl"] == pytest.approx(alone["kl"], rel=1e-5)
    assert 0.5 < kept["kl"] / skipped["kl"] < 2.0
    torch.testing.assert_close(skipped_gradient, alone_gradient, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(kept_gradient, alone_gradient, rtol=1e-2, atol=1e-6)


def test_whole_micro_batches_replay_without_any_error() -> None:
    policy = make_policy()
    assert (
        make_updater(policy).step(Scored(roll_out(policy, micro_batch_size=2), ADV, ONES), 0)["ratio/replay_error"]
        == 0.0
    )


def test_a_second_update_on_the_same_rollouts_has_other_ratios() -> None:
    policy = make_policy()
    row = make_updater(policy, updates_per_rollout=2).step(Scored(roll_out(policy), ADV, ONES), 0)
    assert row["ratio/min"] < 1.0 < row["ratio/max"]


@pytest.mark.parametrize(("sampled", "micro"), [(8, 1), (8, 2), (4, None), (1, None), (2, 8), (2, 4)])
def test_splitting_into_micro_batches_does_not_change_the_step(sampled: int, micro: int | None) -> None:
    """1 x 8 = 8 x 1: every micro-batch adds to one gradient (the predecessor trained one in N)."""
    whole, split = make_policy(), make_policy()
    make_updater(whole).step(Scored(roll_out(whole), ADV, ONES), 0)
    make_updater(split, micro=micro).step(Scored(roll_out(split, micro_batch_size=sampled), ADV, ONES), 0)
    assert gradient(whole).norm() > 0
    torch.testing.assert_close(gradient(split), gradient(whole), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(weights(split), weights(whole), rtol=0, atol=2e-5)


def test_the_gradient_is_that_of_the_mean_over_samples_and_steps() -> None:
    """On policy the surrogate's gradient is -E[A grad logp] (arXiv 2505.05470, eq. 5 at ratio 1)."""
    policy = make_policy()
    batch = roll_out(policy)
    make_updater(policy, lr=1e-12).step(Scored(batch, ADV, ONES), 0)
    actual = gradient(policy).clone()
    policy.trainable.zero_grad()
    logp_BS = policy.replay(batch[0], slice(0, 3)).logp_BS
    (-(ADV[:, None] * logp_BS).sum() / 24).backward()
    torch.testing.assert_close(actual, gradient(policy), rtol=1e-4, atol=1e-8)


def test_masked_samples_count_neither_above_nor_below_the_line() -> None:
    """Weight 0 for the second half must be the same as training on the first half alone."""
    masked, half = make_policy(), make_policy()
    weight = torch.tensor([1.0] * 4 + [0.0] * 4)
    make_updater(masked).step(Scored(roll_out(masked), ADV, weight), 0)
    make_updater(half).step(Scored(roll_out(half, micro_batch_size=4)[:1], ADV[:4], ONES[:4]), 0)
    torch.testing.assert_close(gradient(masked), gradient(half), rtol=1e-4, atol=1e-7)


def test_a_step_without_any_valid_sample_changes_nothing() -> None:
    policy = make_policy()
    before = weights(policy)
    row = make_updater(policy).step(Scored(roll_out(policy), torch.zeros(8), torch.zeros(8)), 0)
    assert torch.equal(weights(policy), before)
    assert row["loss/policy"] == 0.0


def test_kl_pulls_back_to_the_starting_weights() -> None:
    policy = make_policy(keep_reference=True)
    with torch.no_grad():
        policy.trainable.proj_out.weight.add_(0.02)
    row = make_updater(policy, kl_beta=1.0, lr=1e-12).step(Scored(roll_out(policy), torch.zeros(8), ONES), 0)
    assert row["kl"] > 0
    assert row["grad_norm"] > 0, "with zero advantages only the KL has a gradient"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_step(bad: float) -> None:
    policy = make_policy()
    batch, before = roll_out(policy), weights(policy)
    adv = ADV.clone()
    adv[3] = bad
    with pytest.raises(StopTrainingError, match=r"not finite.*this update was not made") as caught:
        make_updater(policy).step(Scored(batch, adv, ONES), 4)
    assert not caught.value.midway
    assert torch.equal(weights(policy), before)


def test_a_second_update_that_is_not_finite_leaves_weights_nobody_may_save() -> None:
    policy = make_policy()
    updater = make_updater(policy, updates_per_rollout=2)
    norms = iter([1.0, math.nan])
    take = updater.engine.step
    updater.engine.step = lambda lr, **scale: (take(lr, **scale), next(norms))[1]  # type: ignore[method-assign]
    with pytest.raises(StopTrainingError, match=r"The 1 of 2 before it were, so the weights are not saved") as caught:
        updater.step(Scored(roll_out(policy), ADV, ONES), 4)
    assert caught.value.midway


def test_the_rate_ends_at_min_lr() -> None:
    """As a cosine with a least rate falls elsewhere: min + (lr - min) (1 + cos(pi s / T)) / 2; the warm-up rises from 0 to lr."""
    config = OptimConfig(lr=2e-4, min_lr=2e-5, schedule="cosine", warmup_steps=4)
    rates = [learning_rate(config, step, 20) for step in range(21)]
    assert rates[:4] == pytest.approx([0.5e-4, 1e-4, 1.5e-4, 2e-4])
    for step in range(4, 21):
        assert rates[step] == pytest.approx(2e-5 + 1.8e-4 * (1 + math.cos(math.pi * (step - 4) / 16)) / 2)
    assert rates[20] == pytest.approx(2e-5) and min(rates[4:]) == rates[20]
    assert learning_rate(OptimConfig(lr=1.0, min_lr=0.25), 30, 40) == pytest.approx(0.25 + 0.75 * 0.25)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    linear = OptimConfig(lr=1.0, schedule="linear", warmup_steps=2)
    assert [learning_rate(linear, step, 4) for step in range(4)] == [0.5, 1.0, 1.0, 0.5]
    late = OptimConfig(lr=1.0, schedule="linear", warmup_steps=2, decay_share=0.4)
    assert [learning_rate(late, step, 10) for step in range(10)] == [0.5, *[1.0] * 6, 0.75, 0.5, 0.25]
    constant = OptimConfig(lr=1.0, schedule="constant")
    assert [learning_rate(constant, step, 4) for step in range(4)] == [1.0] * 4


def test_a_rate_without_warm_up_is_what_it_has_always_been() -> None:
    """Bit for bit 1 - s / T: what ran before must run alike."""
    config = OptimConfig(lr=3e-4, schedule="linear")
    for steps in (7, 100, 333):
        assert [learning_rate(config, s, steps) for s in range(steps)] == [
            3e-4 * (1.0 - s / steps) for s in range(steps)
        ]
