"""Every objective through the update, on the tiny policy: splits, masks, first ratios, old policies, KL."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_updates import (
    ADV,
    ONES,
    PROMPTS,
    WORLD,
    drawn_again,
    gradient,
    make_policy,
    make_updater,
    objective_config,
    policy_for,
    roll_out,
    weights,
)
from trainer.losses import clipped_surrogate, diffuse, kl_penalty, matching_error, nft_loss
from trainer.objectives import OBJECTIVES, Scored, build_objective, needs_reference, plan_needs
from trainer.objectives.flow.pairs import extreme_pairs
from trainer.objectives.tokens.policy import TOKENS
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.policy import FlowPolicy
from trainer.types import Prompt, Rollout, StopTrainingError
from trainer.update.schedule import old_decay
from trainer.update.tally import Tally
from trainer.update.work import Item, Work, plan_work

CASES: dict[str, dict[str, Any]] = {
    "flow_grpo": {"kl_beta": 0.1, "kl_type": "latent"},
    "grpo_guard": {"objective": "grpo_guard", "guard_reweight": True, "kl_beta": 0.1},
    "diffusion_nft": {"objective": "diffusion_nft", "timestep_draws": 3, "kl_beta": 0.1},
    "awm": {"objective": "awm", "timestep_draws": 2, "timestep_distribution": "logit_normal", "kl_beta": 0.1},
    "diffusion_dpo": {"objective": "diffusion_dpo", "timestep_draws": 2, "timestep_shift": 3.0, "kl_beta": 0.1},
    "own": {
        "objective": "own",
        "code": "tests.support.own_objectives:clipped",
        "options": {"width": 0.1},
        "kl_beta": 0.1,
    },
    "own_forward": {"objective": "own_forward", "code": "tests.support.own_objectives:rwr", "timestep_draws": 2},
}


def test_every_objective_has_a_case() -> None:
    assert CASES.keys() == OBJECTIVES.keys() - TOKENS.keys()


@pytest.fixture(params=CASES)
def objective(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def drift(policy: FlowPolicy) -> None:
    """Away from the weights that sampled, so that ratios, drifts and KLs are none of them trivial."""
    with torch.no_grad():
        policy.trainable.proj_out.weight.add_(0.002)


def update(
    objective: str,
    *,
    sampled: int = 8,
    micro: int | None = None,
    weight: Tensor = ONES,
    moved: bool = True,
    **more: Any,
) -> tuple[FlowPolicy, dict[str, float]]:
    fields = CASES[objective] | more
    policy = policy_for(**fields)
    batch = roll_out(policy, objective, sampled)
    if moved:
        drift(policy)
    return policy, make_updater(policy, micro=micro, **fields).step(Scored(batch, ADV, weight), 0)


@pytest.mark.parametrize(("sampled", "micro"), [(8, 1), (8, 3), (1, None), (4, None), (2, 8)])
def test_micro_batches_do_not_change_the_step(objective: str, sampled: int, micro: int | None) -> None:
    """1 x 8 = 8 x 1, whatever the split, with a sample that does not count and a KL beside the loss."""
    weight = torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1])
    whole, row = update(objective, weight=weight)
    split, other = update(objective, sampled=sampled, micro=micro, weight=weight)
    assert gradient(whole).norm() > 0
    scale = gradient(whole).abs().max().item()
    torch.testing.assert_close(gradient(split), gradient(whole), rtol=1e-3, atol=1e-4 * scale)
    for name, value in row.items():
        if not name.startswith("ratio/") and name not in ("grad_norm", "clip_share"):
            assert value == pytest.approx(other[name], rel=1e-3, abs=1e-5), name


def test_samples_without_weight_count_neither_above_nor_below_the_line(objective: str) -> None:
    """The second group masked is the same step as the first group alone."""
    fields = CASES[objective]
    masked, _ = update(objective, weight=torch.tensor([1.0] * 4 + [0.0] * 4))
    half = policy_for(**fields)
    batch = roll_out(half, objective, 4)[:1]
    drift(half)
    make_updater(half, **fields).step(Scored(batch, ADV[:4], ONES[:4]), 0)
    scale = gradient(half).abs().max().item()
    torch.testing.assert_close(gradient(masked), gradient(half), rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("micro", [None, 1, 3])
@pytest.mark.parametrize("name", ["flow_grpo", "grpo_guard", "awm"])
def test_first_ratios_are_exactly_one(name: str, micro: int | None) -> None:
    _, row = update(name, micro=micro, moved=False)
    assert row["ratio/min"] == row["ratio/mean"] == row["ratio/max"] == 1.0
    assert row["clip_share"] == 0


def test_a_step_without_a_term_changes_nothing(objective: str) -> None:
    policy = policy_for(**CASES[objective])
    before = weights(policy)
    row = make_updater(policy, **CASES[objective]).step(Scored(roll_out(policy, objective), ADV, 0 * ONES), 0)
    assert torch.equal(weights(policy), before)
    assert row["loss/policy"] == row["kl"] == 0


def test_a_loss_that_is_not_finite_stops_before_the_step(objective: str) -> None:
    policy = policy_for(**CASES[objective])
    batch = roll_out(policy, objective)
    with torch.no_grad():
        policy.trainable.proj_out.bias[0] = math.nan
    before = weights(policy)
    with pytest.raises(StopTrainingError, match="this update was not made"):
        make_updater(policy, **CASES[objective]).step(Scored(batch, ADV, ONES), 0)
    torch.testing.assert_close(weights(policy), before, equal_nan=True, rtol=0, atol=0)


PULLS = {
    "diffusion_nft": ({"nft_adv_clip": 1.5}, (1 + 1 + 0.5 + 0.5 + 1.5 + 1.5 + 0.1) / 7),
    "awm": ({}, (1 + 1 + 0.5 + 0.5 + 2 + 2 + 0.1) / 7),
    "diffusion_dpo": ({"dpo_beta": 0.5}, 0.25 * 0.5),
    "flow_grpo": ({}, (1 + 1 + 0.5 + 0.5 + 2 + 2 + 0.1) / 7),
}


@pytest.mark.parametrize("name", PULLS)
def test_beside_another_task_it_says_how_much_it_moves_the_weights(name: str) -> None:
    """Before the first update, over what has a weight: |A|, which DiffusionNFT clips; of Diffusion-DPO beta / 2 * sigmoid(0), as the
    weights are the reference."""
    changed, expected = PULLS[name]
    fields = CASES[name] | changed
    for task in ("generate", ""):
        policy = policy_for(**fields)
        batch = roll_out(policy, name, prompts=[replace(prompt, task=task) for prompt in PROMPTS])
        row = make_updater(policy, **fields).step(Scored(batch, ADV, torch.tensor([1.0] * 7 + [0.0])), 0)
        assert row.get("loss/pull") == (pytest.approx(expected) if task else None)


@pytest.mark.parametrize("name", ["flow_grpo", "grpo_guard", "diffusion_nft", "awm"])
def test_the_kl_pulls_back_to_the_starting_weights(name: str) -> None:
    """Without an advantage only the KL is left, and it falls along its gradient."""
    fields = CASES[name] | {"kl_beta": 1.0}
    policy = policy_for(**fields)
    batch = roll_out(policy, name)
    drift(policy)
    updater = make_updater(policy, lr=3e-5, **fields)
    adv = 0 * ADV
    first, second = (updater.step(Scored(drawn_again(batch), adv, ONES), 0)["kl"] for _ in range(2))
    assert 0 < second < first


@pytest.mark.parametrize("name", ["diffusion_nft", "awm", "diffusion_dpo"])
def test_noise_levels_are_the_samples_own(name: str) -> None:
    """Another step draws others; the same step draws the same, so the loss is the same to the last digit."""
    rows = []
    for step in (0, 0, 1):
        policy = policy_for(**CASES[name])
        batch = roll_out(policy, name)
        drift(policy)
        rows.append(make_updater(policy, lr=1e-12, **CASES[name]).step(Scored(batch, ADV, ONES), step)["kl"])
    assert rows[0] == rows[1] != rows[2]


def point(policy: FlowPolicy, batch: list[Rollout], **fields: Any) -> tuple[Any, Any]:
    updater = make_updater(policy, **fields)
    (only,) = updater.objective.batches(Scored(batch, ADV, ONES), 0)
    return only, updater.objective.draw(only, 0)  # type: ignore[attr-defined]


def test_points_follow_the_forward_process() -> None:
    """x = (1 - sigma) x0 + sigma noise with x0 the final clean latents of the rollout, not those of a step before."""
    policy = make_policy()
    batch = roll_out(policy, "diffusion_nft")
    _, drawn = point(policy, batch, objective="diffusion_nft")
    assert torch.equal(drawn.x0, policy.clean(batch[0]))
    assert torch.equal(policy.model.decode(drawn.x0)[3], torch.from_numpy(batch[0].samples[3].images[0]))
    sigma = drawn.sigma_B[:, None, None, None]
    torch.testing.assert_close(drawn.x, (1 - sigma) * drawn.x0 + sigma * drawn.noise)
    assert len(set(drawn.sigma_B.tolist())) == 8, "each sample has its own noise level"


def test_nft_is_its_equation_on_the_policy() -> None:
    """DiffusionNFT (arXiv 2509.16117) eq. 5: v_old is the sampling policy's velocity, here that of before the drift."""
    fields: dict[str, Any] = {"objective": "diffusion_nft", "old_decay": 0.5, "nft_beta": 0.3, "nft_adv_clip": 2.0}
    policy = make_policy()
    batch = roll_out(policy, "diffusion_nft")
    updater = make_updater(policy, lr=1e-12, **fields)  # takes the present weights for the sampling policy
    _, drawn = point(policy, batch, **fields)
    with torch.no_grad():
        v_old = policy.predict(batch[0].prompts, drawn.x, drawn.sigma_B)
    drift(policy)
    v = policy.predict(batch[0].prompts, drawn.x, drawn.sigma_B)
    expected, stats = nft_loss(v, v_old, drawn.x, drawn.x0, drawn.sigma_B, ADV, ONES, beta=0.3, adv_clip=2.0)
    row = updater.step(Scored(batch, ADV, ONES), 0)
    assert row["loss/policy"] == pytest.approx(expected.item() / 8, rel=1e-5)
    assert row["nft/drift"] == pytest.approx(stats.sums["nft/drift"].item() / 8, rel=1e-4)
    assert row["nft/drift"] > 0


def test_awm_is_its_equation_on_the_policy() -> None:
    """AWM (arXiv 2509.25050): log-probability -|v - (noise - x0)|^2 at the drawn point, in the clipped surrogate."""
    fields: dict[str, Any] = {"objective": "awm", "old_decay": 0.5, "clip_range": 1e-3}
    policy = make_policy()
    batch = roll_out(policy, "awm")
    updater = make_updater(policy, lr=1e-12, **fields)
    _, drawn = point(policy, batch, **fields)

    def logp() -> Tensor:
        v = policy.predict(batch[0].prompts, diffuse(drawn.x0, drawn.noise, drawn.sigma_B), drawn.sigma_B)
        return -matching_error(v, drawn.x0, drawn.noise)[:, None].detach()

    old = logp()
    drift(policy)
    expected, stats = clipped_surrogate(logp(), old, ADV, ONES, clip_range=1e-3)
    row = updater.step(Scored(batch, ADV, ONES), 0)
    assert row["loss/policy"] == pytest.approx(expected.item() / 8, rel=1e-4)
    assert row["clip_share"] == pytest.approx(stats.sums["clip_share"].item() / 8)
    assert row["ratio/max"] > 1 > row["ratio/min"]


def test_awm_as_its_recipes_have_it() -> None:
    """sigma / p * error^p in place of the error, and a second KL, to the sampling policy, a moving average of the weights."""
    fields: dict[str, Any] = {
        "objective": "awm",
        "old_decay": 0.5,
        "clip_range": 1.0,
        "awm_power": 0.25,
        "old_kl_beta": 5.0,
    }
    policy = make_policy()
    batch = roll_out(policy, "awm")
    updater = make_updater(policy, lr=1e-12, **fields)
    _, drawn = point(policy, batch, **fields)
    x = diffuse(drawn.x0, drawn.noise, drawn.sigma_B)

    def velocity() -> Tensor:
        return policy.predict(batch[0].prompts, x, drawn.sigma_B)

    def logp(v: Tensor) -> Tensor:
        return -(drawn.sigma_B * 4 * matching_error(v, drawn.x0, drawn.noise) ** 0.25)[:, None]

    v_old = velocity().detach()
    drift(policy)
    v = velocity()
    expected, _ = clipped_surrogate(logp(v), logp(v_old), ADV, ONES, clip_range=1.0)
    apart = ((v - v_old) ** 2).flatten(1).mean(1).sum()
    parameters = [p for p in policy.trainable.parameters() if p.requires_grad]
    grads = torch.autograd.grad((expected + 5.0 * apart) / 8, parameters, allow_unused=True)
    row = updater.step(Scored(batch, ADV, ONES), 0)
    assert row["loss/policy"] == pytest.approx(expected.item() / 8, abs=3e-8)  # ratios round to 6e-8
    assert row["loss/kl_old"] == pytest.approx(apart.item() / 8, rel=1e-4)
    assert row["loss/kl_old"] > 0
    torch.testing.assert_close(
        gradient(policy), torch.cat([g.flatten() for g in grads if g is not None]), rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize("name", ["diffusion_nft", "awm"])
def test_without_a_decay_the_first_prediction_is_the_old_policy(name: str) -> None:
    """On policy: nothing has drifted in the first update; the second compares with what the first one saw."""
    _, row = update(name, moved=False, updates_per_rollout=1)
    _, twice = update(name, moved=False, updates_per_rollout=2)
    metric = {"diffusion_nft": "nft/drift", "awm": "ratio/max"}[name]
    start = {"diffusion_nft": 0.0, "awm": 1.0}[name]
    assert row[metric] == start
    assert twice[metric] > start


def test_the_sampling_policy_follows_as_a_moving_average() -> None:
    """old <- decay * old + (1 - decay) * trained, once a step (DiffusionNFT, arXiv 2509.16117, soft update)."""
    policy = make_policy()
    updater = make_updater(policy, objective="diffusion_nft", old_decay=0.75)
    start = weights(policy)
    updater.step(Scored(roll_out(policy, "diffusion_nft"), ADV, ONES), 0)
    trained = weights(policy)
    with updater.sampling_policy():
        old = weights(policy)
    torch.testing.assert_close(old, 0.75 * start + 0.25 * trained)
    assert torch.equal(weights(policy), trained)
    assert not torch.equal(old, trained)


def test_a_tasks_sampling_policy_draws_and_sees_its_samples_alone() -> None:
    """Those of another task are the trained policy's, in the order of the tasks and beside a supervised loss."""
    policy = make_policy()
    updater = make_updater(policy, objective="diffusion_nft", old_decay=0.75)
    updater.step(Scored(roll_out(policy, "diffusion_nft"), ADV, ONES), 0)
    trained, seen = weights(policy), list[tuple[str, bool]]()
    assert updater.old is not None
    updater.old.task = "generate"
    for task, by_average in (("understand", False), ("generate", True), ("", False)):
        with updater.sampling_policy(task):
            assert torch.equal(weights(policy), trained) is not by_average

    def terms(batch: Any, part: int) -> None:
        seen.append((batch.kind, torch.equal(weights(policy), trained)))

    updater.objective = SimpleNamespace(terms=terms)  # type: ignore[assignment]
    kinds = ("understand/rollouts", "generate/rollouts", "main/generate/rollouts", "main/understand/rollouts")
    batches = [SimpleNamespace(kind=kind, update=None) for kind in kinds]
    batches.append(SimpleNamespace(kind="beside0/generate", update=0))
    updater._remember(Work([Item(batch, 0) for batch in batches], []))  # type: ignore[arg-type]
    assert seen == [("generate/rollouts", False), ("main/generate/rollouts", False)]


def test_the_sampling_policys_decay_rises() -> None:
    """DiffusionNFT (arXiv 2509.16117) section 4.4: eta_i = min(rate * i, most), here rate .2 up to .6 over three steps."""
    policy = make_policy()
    updater = make_updater(policy, objective="diffusion_nft", old_decay=0.6, old_decay_steps=3)
    old = weights(policy)
    for step, decay in enumerate((0.2, 0.4, 0.6, 0.6)):
        updater.step(Scored(roll_out(policy, "diffusion_nft"), ADV, ONES), step)
        expected = decay * old + (1 - decay) * weights(policy)
        with updater.sampling_policy():
            old = weights(policy)
        torch.testing.assert_close(old, expected)


def test_the_sampling_policys_decay_may_rise_late() -> None:
    """DiffusionNFT's recipe for OCR: 0 for 75 steps, then .0075 a step up to .999."""
    late = {"old_decay": 0.999, "old_decay_steps": 133, "old_decay_start": 75}
    config: Any = objective_config("diffusion_nft", **late)
    published = [0.0 if step < 75 else min((step - 75) * 0.0075, 0.999) for step in range(300)]
    # Their counter stands at `step` after `step` updates; ours is asked after update `step`, counted from 0.
    assert [old_decay(config, step - 1) for step in range(300)] == pytest.approx(published, abs=0.002)
    assert old_decay(config, 74) == 0.0
    early: Any = objective_config("diffusion_nft", old_decay=0.6, old_decay_start=2)
    assert [old_decay(early, step) for step in range(4)] == [0.0, 0.0, 0.6, 0.6]


def test_on_policy_sampling_is_with_the_trained_weights() -> None:
    policy = make_policy()
    updater = make_updater(policy)
    updater.step(Scored(roll_out(policy), ADV, ONES), 0)
    trained = weights(policy)
    with updater.sampling_policy():
        assert torch.equal(weights(policy), trained)


def test_pairs_are_the_extremes_of_each_group() -> None:
    """Ties go to the first; what has no weight is no candidate; a group without a comparison has weight 0."""
    group = torch.tensor([7, 7, 7, 7, 2, 2, 9, 9, 9, 4, 4])
    adv = torch.tensor([1.0, 3.0, -5.0, -2.0, 0.5, 0.5, 1.0, 2.0, 3.0, 8.0, 9.0])
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    rows, pair_weight = extreme_pairs(adv, weight, group)
    assert pair_weight.tolist() == [0, 1, 1, 0]  # groups 2, 4, 7, 9
    assert rows[1:3].tolist() == [[10, 9], [1, 3]]


def test_dpo_trains_on_the_extremes_alone() -> None:
    """Rows 0, 1 and 4, 5 have the extreme advantages; to hide the others changes nothing, to hide one of them does."""
    extremes = torch.tensor([1.0, 1, 0, 0, 1, 1, 0, 0])
    whole, row = update("diffusion_dpo")
    hidden, _ = update("diffusion_dpo", weight=extremes)
    other, _ = update("diffusion_dpo", weight=1 - extremes)
    torch.testing.assert_close(gradient(hidden), gradient(whole))
    assert not torch.allclose(gradient(other), gradient(whole), rtol=0.1)
    assert row["dpo/margin"] != 0


def test_dpo_begins_at_log_two_and_learns_its_pairs() -> None:
    """Diffusion-DPO (arXiv 2311.12908): at the reference the loss is log 2; steps down it widen the margin."""
    fields: dict[str, Any] = {"objective": "diffusion_dpo", "dpo_beta": 2000.0}
    policy = policy_for(**fields)
    batch = roll_out(policy, "diffusion_dpo")
    updater = make_updater(policy, lr=1e-4, **fields)
    rows = [updater.step(Scored(drawn_again(batch), ADV, ONES), 0) for _ in range(4)]
    assert rows[0]["loss/policy"] == pytest.approx(math.log(2))
    assert rows[-1]["loss/policy"] < rows[0]["loss/policy"]
    assert rows[-1]["dpo/accuracy"] == 1


def test_dpo_pairs_share_noise_level_and_noise() -> None:
    policy = policy_for(objective="diffusion_dpo")
    updater = make_updater(policy, objective="diffusion_dpo")
    (batch,) = updater.objective.batches(Scored(roll_out(policy, "diffusion_dpo"), ADV, ONES), 0)
    points = []
    draw = updater.objective.draw  # type: ignore[attr-defined]
    updater.objective.draw = lambda *args: points.append(draw(*args)) or points[-1]  # type: ignore[attr-defined]
    updater.objective.terms(batch, 0)
    assert [sample.id for sample in batch.rollout.samples] == ["a#0", "a#1", "b#0", "b#1"]
    assert torch.equal(points[0].noise[0], points[0].noise[1])
    assert points[0].sigma_B[2] == points[0].sigma_B[3] != points[0].sigma_B[0]


@pytest.mark.parametrize("micro", [None, 3])
def test_a_stale_rollout_is_corrected_for(micro: int | None) -> None:
    """Decoupled PPO (AReaL, arXiv 2505.24298 section 5.2): ratios to the first replay, weights exp(logp_prox - logp)."""
    policy = make_policy()
    fresh = roll_out(policy)
    drift(policy)
    stale = [replace(rollout, behind=1) for rollout in fresh]
    row = make_updater(policy, lr=1e-12, micro=micro).step(Scored(stale, ADV + 1, ONES), 0)
    assert row["ratio/min"] == row["ratio/max"] == 1.0
    with torch.no_grad():
        proximal = policy.replay(fresh[0], slice(0, 3)).logp_BS
    w = (proximal - fresh[0].logp_BS).exp()
    assert row["importance/mean"] == pytest.approx(w.mean().item(), rel=1e-5)
    assert row["importance/max"] == pytest.approx(w.max().item(), rel=1e-5)
    assert row["importance/capped_share"] == 0
    assert row["loss/policy"] == pytest.approx(-(w * (ADV + 1)[:, None]).mean().item(), rel=1e-6)
    assert "ratio/replay_error" not in row


def test_importance_weights_are_capped() -> None:
    policy = make_policy()
    fresh = roll_out(policy)
    stale = [replace(r, logp_BS=r.logp_BS - math.log(3), behind=1) for r in fresh]
    row = make_updater(policy, lr=1e-12, importance_cap=2.0).step(Scored(stale, ADV.abs(), ONES), 0)
    assert row["importance/capped_share"] == 1
    assert row["importance/mean"] == pytest.approx(3, rel=1e-5)
    assert row["loss/policy"] == pytest.approx(-2 * ADV.abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize("reweight", [False, True])
def test_guard_is_its_equation_on_the_policy(reweight: bool) -> None:
    """GRPO-Guard (arXiv 2510.22319): log rho = <eps, m>, m the move of the step's mean; its loss divided by -dt.

    One step, Flow-GRPO's SDE from sigma .75 to .5: s = .7 sqrt(3), std = s / 2, and a velocity that moves by d moves the
    mean by (1 + s^2 / (2 sigma) (1 - sigma)) dt d.
    """
    policy = make_policy()
    (rollout,) = policy.sample(PROMPTS, 4, range(8), SamplingPlan(4, 8, "flow_sde", 0.7, (1,), (1,), keep_means=True))
    x, x_next = rollout.trace.x_BT[:, 0], rollout.trace.x_BT[:, 1]
    s, dt = 0.7 * math.sqrt(3), -0.25
    velocities = []
    for _ in range(2):
        with torch.no_grad():
            velocities.append(policy.predict(rollout.prompts, x, torch.full((8,), 0.75)).double())
            policy.trainable.proj_out.weight.add_(0.05)
    means = [x + (v + s**2 / 1.5 * (x + 0.25 * v)) * dt for v in velocities]
    eps = (x_next - means[0]) / (s / 2)
    ratio = (eps * (means[1] - means[0])).flatten(1).mean(1).exp()
    with torch.no_grad():
        policy.trainable.proj_out.weight.sub_(0.05)
    updater = make_updater(policy, lr=1e-12, objective="grpo_guard", guard_reweight=reweight, clip_range=9.0)
    row = updater.step(Scored([rollout], ADV, ONES), 0)
    assert row["ratio/min"] == pytest.approx(ratio.min().item(), abs=1e-6)
    assert row["ratio/max"] == pytest.approx(ratio.max().item(), abs=1e-6)
    assert ratio.max() - ratio.min() > 1e-4
    assert row["loss/policy"] == pytest.approx(-(ratio * ADV).mean().item() / (0.25 if reweight else 1), abs=1e-6)


def test_guard_without_means_says_what_it_needs() -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match="sample with keep_means"):
        make_updater(policy, objective="grpo_guard").step(Scored(roll_out(policy, "flow_grpo"), ADV, ONES), 0)


def test_dance_grpo_is_its_equation() -> None:
    """DanceGRPO (arXiv 2505.07818): GRPO's clipped objective on the SDE of constant noise level eta.

    One step by hand: mean = x + (v + eta^2 / (2 sigma) (x + (1 - sigma) v)) dt, std = eta sqrt(-dt), the Gaussian density
    averaged over the latents; ratio, clip, mean over samples and steps.
    """
    policy = make_policy()
    plan = SamplingPlan(4, 8, "dance_sde", 0.3, (1,), (1,))
    (rollout,) = policy.sample(PROMPTS, 4, range(8), plan)
    updater = make_updater(policy, lr=1e-12, clip_range=1e-3)
    with torch.no_grad():
        policy.trainable.proj_out.weight.add_(0.05)
    adv = ADV + 1.25  # none is 0: such a sample is not computed, and the others not as they were sampled
    row = updater.step(Scored([rollout], adv, ONES), 0)
    sigma, dt, eta = 0.75, -0.25, 0.3
    x, x_next = rollout.trace.x_BT[:, 0], rollout.trace.x_BT[:, 1]
    with torch.no_grad():
        v = policy.predict(rollout.prompts, x, torch.full((8,), sigma))
    mean = x + (v + eta**2 / (2 * sigma) * (x + (1 - sigma) * v)) * dt
    std = eta * math.sqrt(-dt)
    density = -((x_next - mean) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi))
    ratio = (density.double().flatten(1).mean(1) - rollout.logp_BS[:, 0].double()).exp()
    terms = torch.minimum(ratio * adv, ratio.clamp(1 - 1e-3, 1 + 1e-3) * adv)
    assert row["loss/policy"] == pytest.approx(-terms.mean().item(), rel=1e-6)
    assert terms.mean() != (ratio * adv).mean() != adv.mean()
    assert 0 < row["clip_share"] < 1


@pytest.mark.parametrize("kl_type", ["velocity", "latent"])
def test_kl_types_by_their_formulas(kl_type: str) -> None:
    """Flow-GRPO (arXiv 2505.05470) section 4: squared distance of step means, or of velocities, over 2 std^2."""
    fields: dict[str, Any] = {"kl_beta": 1.0, "kl_type": kl_type}
    policy = policy_for(**fields)
    (rollout,) = roll_out(policy)
    drift(policy)
    row = make_updater(policy, lr=1e-12, **fields).step(Scored([rollout], 0 * ADV, ONES), 0)
    total = 0.0
    for column, sigma in enumerate((1.0, 0.75, 0.5)):
        x = rollout.trace.x_BT[:, column]
        with torch.no_grad():
            v, v_ref = (policy.predict(rollout.prompts, x, torch.full((8,), sigma), reference=r) for r in (False, True))
        s = 0.7 * math.sqrt(sigma / (1 - min(sigma, 0.75)))
        std, dt = s * math.sqrt(0.25), -0.25
        factor = 1.0 if kl_type == "velocity" else (1 + s**2 / (2 * sigma) * (1 - sigma)) * dt
        total += ((factor * (v - v_ref)) ** 2).mean().item() / (2 * std**2 + 1e-7)
    assert row["kl"] == pytest.approx(total / 3, rel=1e-3)


def test_forward_kl_is_the_distance_of_velocities_at_the_point() -> None:
    fields: dict[str, Any] = {"objective": "awm", "kl_beta": 1.0}
    policy = policy_for(**fields)
    batch = roll_out(policy, "awm")
    drift(policy)
    _, drawn = point(policy, batch, **fields)
    with torch.no_grad():
        v, v_ref = (policy.predict(batch[0].prompts, drawn.x, drawn.sigma_B, reference=r) for r in (False, True))
    row = make_updater(policy, lr=1e-12, **fields).step(Scored(batch, 0 * ADV, ONES), 0)
    expected = kl_penalty(((v - v_ref) ** 2).flatten(1).mean(1)[:, None], ONES) / 8
    assert row["kl"] == pytest.approx(expected.item(), rel=1e-4)


def test_no_part_reads_the_device(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To read a tensor's value is to wait for a GPU: while losses add up, none is read."""
    fields = CASES[objective]
    policy = policy_for(**fields)
    batch = roll_out(policy, objective)
    updater = make_updater(policy, micro=2, **fields)
    work = plan_work(updater.objective, Scored(batch, ADV, ONES), 0, 1, WORLD)
    schedule = policy._schedule(batch[0].trace.plan)  # made of numbers that never were on a device
    monkeypatch.setattr(policy, "_schedule", lambda plan: schedule)
    for name in ("item", "tolist", "__float__", "__bool__", "__int__", "numpy", "cpu"):

        def refuse(self: Tensor, *args: Any, _name: str = name) -> None:
            raise AssertionError(f"{_name} of a tensor {tuple(self.shape)}")

        monkeypatch.setattr(Tensor, name, refuse)
    tally = Tally(WORLD)
    updater._backward(work.items, work.counts_U[0], tally)
    monkeypatch.undo()
    assert tally.metrics()["loss/kl"] == 0


def test_needs() -> None:
    assert plan_needs("flow_grpo") == plan_needs("flow_grpo")
    assert plan_needs("grpo_guard").keep_means and not plan_needs("grpo_guard").deterministic
    for name in ("diffusion_nft", "awm", "diffusion_dpo"):
        assert plan_needs(name).keep_final and plan_needs(name).deterministic
    assert needs_reference(objective_config("diffusion_dpo"))
    assert needs_reference(objective_config(kl_beta=0.1))
    assert not needs_reference(objective_config("diffusion_nft"))


def test_one_prompt_in_two_data_sets_has_two_noises() -> None:
    """A sample is known by data set, prompt and place in its group."""
    policy = make_policy()
    prompts = [Prompt("a", PROMPTS[0].text, "one"), Prompt("a", PROMPTS[0].text, "two")]
    _, drawn = point(policy, roll_out(policy, "awm", prompts=prompts), objective="awm")
    assert len(set(drawn.sigma_B.tolist())) == 8


def test_a_second_step_on_the_same_samples_is_refused(objective: str) -> None:
    """It would start the ratios at 1 again. Samples drawn anew, even the same ones, are taken."""
    policy = policy_for(**CASES[objective])
    batch, updater = roll_out(policy, objective), make_updater(policy, **CASES[objective])
    updater.step(Scored(batch, ADV, ONES), 0)
    with pytest.raises(ValueError, match=r"rollout of sample a#0 was trained on before.*optim.updates_per_rollout"):
        updater.step(Scored(batch, ADV, ONES), 1)
    updater.step(Scored(drawn_again(batch), ADV, ONES), 1)


class OnlySamples:
    """A policy that draws and cannot be trained."""

    about = "nothing"
    trainable = torch.nn.Linear(1, 1)

    def check_prompts(self, prompts: Any) -> None: ...

    def sample(self, *args: Any) -> Any: ...


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, r"objective.type = flow_grpo trains through Replays .*policy OnlySamples has no parts, replay"),
        (
            {"objective": "awm"},
            r"objective.type = awm trains through Denoises .*OnlySamples has no check_size, clean",
        ),
    ],
)
def test_an_objective_that_does_not_fit_the_policy_is_refused_at_the_start(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_objective(OnlySamples(), objective_config(**fields), micro_batch_size=None, seed=0)
