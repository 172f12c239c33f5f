"""What holds for every text policy, on the bigram double: answers of unequal length, and NaN behind their ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.bigram import Bigram, Tokens
from tests.support.bigram_ranks import ADV, GIVEN, LOSSES, draw, gradient, make_updater, row_of, weights
from tests.support.rank_cases import cases_on_ranks
from tests.support.tiny_updates import drawn_again
from trainer.losses import policy_loss
from trainer.objectives import Scored, total
from trainer.objectives.tokens.policy import TokenPolicy
from trainer.policies.base import regroup

SHOWN = "dapo"  # the loss of each promise that is not slow
every_loss = pytest.mark.parametrize(
    "loss", [name if name == SHOWN else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
)
ONES = torch.ones(8)


def step(loss: str, *, sampled: int = 8, micro: int | None = None, updates: int = 2) -> tuple[Bigram, dict[str, float]]:
    """One training step of a fresh policy on eight answers of which the third does not count. In the second update no
    ratio and no KL is trivial any more."""
    policy = Bigram()
    rollouts = draw(policy, micro_batch_size=sampled)
    weight_B = ONES.clone()
    weight_B[2] = 0
    row = make_updater(policy, loss, micro=micro, updates=updates).step(Scored(rollouts, ADV, weight_B), 0)
    return policy, row


def test_answers_are_ragged_and_nan_lies_behind_their_ends() -> None:
    """Else nothing below would say anything."""
    (rollout,) = draw(Bigram())
    lengths = rollout.mask_BS.sum(1)
    assert len(set(lengths.tolist())) > 2 and lengths.max() == rollout.logp_BS.shape[1] > lengths.min()
    assert rollout.logp_BS[~rollout.mask_BS].isnan().all() and rollout.logp_BS[rollout.mask_BS].isfinite().all()


@every_loss
@pytest.mark.parametrize(("sampled", "micro"), [(8, 2), (8, 1), (2, None), (1, None), (2, 8), (4, 3)])
def test_one_micro_batch_is_many(loss: str, sampled: int, micro: int | None) -> None:
    """1 x 8 = 8 x 1, cut and joined: the same gradient, its norm and metrics, whatever is padded to whatever length."""
    whole, row = step(loss)
    other, cut = step(loss, sampled=sampled, micro=micro)
    assert row["grad_norm"] > 1e-3
    assert cut["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-5)
    torch.testing.assert_close(gradient(other), gradient(whole), rtol=1e-4, atol=1e-7)
    for name, value in row.items():
        assert cut[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@every_loss
def test_all_tokens_of_a_micro_batch_cost_one_forward(loss: str) -> None:
    policy, _ = step(loss, micro=2, updates=3)
    assert policy.forwards == 4 * 3


@every_loss
def test_padding_changes_nothing(loss: str) -> None:
    """An answer alone, and the same one padded to three times its length, give the same gradient, with junk in the padding."""
    grads = []
    for padding in (0, 5):
        policy = Bigram()
        (rollout,) = draw(policy)
        wide = [
            torch.nn.functional.pad(each, (0, padding), value=3)
            for each in (rollout.trace.before_BS, rollout.trace.token_BS)
        ]
        padded = replace(
            rollout,
            logp_BS=torch.nn.functional.pad(rollout.logp_BS, (0, padding), value=math.inf),
            mask_BS=torch.nn.functional.pad(rollout.mask_BS, (0, padding)),
            trace=Tokens(*wide),
        )
        make_updater(policy, loss, updates=2).step(Scored([padded], ADV, ONES), 0)
        grads.append(gradient(policy))
    assert grads[0].norm() > 0
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-8)


@every_loss
def test_samples_without_weight_change_nothing(loss: str) -> None:
    """The second half of no weight and NaN for an advantage is the first half alone."""
    grads = []
    for count in (8, 4):
        policy = Bigram()
        rollouts = regroup(draw(policy, micro_batch_size=4), None)[: count // 4]
        adv_B, weight_B = ADV.clone(), ONES.clone()
        adv_B[4:], weight_B[4:] = math.nan, 0
        make_updater(policy, loss).step(Scored(rollouts, adv_B[:count], weight_B[:count]), 0)
        grads.append(gradient(policy))
    assert grads[0].isfinite().all() and grads[0].norm() > 0
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-8)


@every_loss
@pytest.mark.parametrize(("sampled", "micro"), [(8, None), (4, None), (8, 3), (1, None)])
def test_samples_without_advantage_are_not_computed(
    loss: str, sampled: int, micro: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have a gradient by their KL alone; without one they are left out, and still divide the loss."""
    adv_B = ADV.clone()
    adv_B[torch.tensor([0, 1, 3, 4, 7])] = 0  # in the midst and at both ends, and the whole first half but one
    found, forwards = [], []
    for everything in (False, True):
        policy = Bigram()
        updater = make_updater(policy, loss, micro=micro, updates=2)
        fed = Scored(draw(policy, micro_batch_size=sampled), adv_B, ONES)
        if everything:
            monkeypatch.setattr(TokenPolicy, "_act", lambda self, rollouts, fed: torch.ones(8, dtype=torch.bool))
        row = updater.step(fed, 0)
        found.append((gradient(policy), row["grad_norm"], row["loss/policy"]))
        forwards.append(policy.forwards)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-8)
    assert found[0][1:] == pytest.approx(found[1][1:], rel=1e-5, abs=1e-8)
    assert found[0][0].norm() > 1e-3
    if sampled == 1:
        assert forwards == [2 * (8 if "kl_beta" in LOSSES[loss] else 3), 2 * 8]


def test_without_any_advantage_one_sample_is_computed_and_nothing_moves() -> None:
    """Ranks compute together, so none may have nothing."""
    policy = Bigram()
    before = weights(policy)
    row = make_updater(policy, "luspo").step(Scored(draw(policy, micro_batch_size=4), torch.zeros(8), ONES), 0)
    assert policy.forwards == 1 and row["grad_norm"] == 0
    torch.testing.assert_close(weights(policy), before, rtol=0, atol=0)


@every_loss
def test_first_ratios_are_one_and_later_ones_are_held(loss: str) -> None:
    """Three updates on one set of answers: they begin at ratios of exactly 1, and a narrow clip takes gradients away."""
    policy = Bigram()
    rollouts = draw(policy)
    row = make_updater(policy, loss).step(Scored(drawn_again(rollouts), ADV, ONES), 0)
    assert row["ratio/min"] == row["ratio/max"] == 1 and row["ratio/replay_error"] == 0
    policies = [Bigram(), Bigram()]
    narrow, wide = (
        make_updater(policy, loss, updates=3, lr=0.05, clip=clip).step(Scored(draw(policy), ADV, ONES), 0)
        for policy, clip in zip(policies, (0.02, 50.0), strict=True)
    )
    assert narrow["ratio/min"] < 1 < narrow["ratio/max"]
    if "clip_share" in narrow:
        assert narrow["clip_share"] > 0 == wide["clip_share"]
        assert not torch.equal(weights(policies[0]), weights(policies[1]))


@every_loss
def test_older_answers_are_corrected_for(loss: str) -> None:
    policy = Bigram()
    rollouts = [replace(rollout, behind=1) for rollout in draw(policy)]
    with torch.no_grad():
        policy.trainable[2].bias.add_(torch.linspace(-0.3, 0.3, 7))
    row = make_updater(policy, loss).step(Scored(rollouts, ADV, ONES), 0)
    assert row["ratio/min"] == row["ratio/max"] == 1
    assert row["importance/mean"] != 1 and "ratio/replay_error" not in row


def test_answers_of_another_engine_are_compared_and_corrected_for() -> None:
    """A server says it drew each token with e^0.1 of the share that the policy gives it, every other one with e^-0.3.

    By hand: w is e^-0.1 and e^0.3 by turns; mean |ln w| .2, the largest .3; k3 = w - 1 - ln w; effective share
    mean(w)^2 / mean(w^2). Nothing is behind, so the largest is a replay error, too, and ratios still begin at 1.
    """
    policy, shift = Bigram(), torch.tensor([0.1, -0.3])
    rollouts = [
        replace(r, version=4, logp_BS=r.logp_BS + shift[torch.arange(r.logp_BS.shape[1]) % 2]) for r in draw(policy)
    ]
    mask = [rollout.mask_BS for rollout in rollouts]
    even = sum(float(m[:, ::2].sum()) for m in mask if m is not None)
    odd = sum(float(m[:, 1::2].sum()) for m in mask if m is not None)
    row = make_updater(policy, "dapo").step(Scored(rollouts, ADV, ONES), 0)

    def mean(first: float, second: float) -> float:
        return (even * first + odd * second) / (even + odd)

    low, high = math.exp(-0.1), math.exp(0.3)
    assert row["ratio/min"] == row["ratio/max"] == 1
    assert row["drift/mean"] == pytest.approx(mean(0.1, 0.3), rel=1e-4)
    assert row["drift/max"] == row["ratio/replay_error"] == pytest.approx(0.3, rel=1e-4)
    assert row["drift/k3"] == pytest.approx(mean(low - 1 + 0.1, high - 1 - 0.3), rel=1e-3)
    assert row["importance/mean"] == pytest.approx(mean(low, high), rel=1e-4)
    assert row["importance/effective_share"] == pytest.approx(mean(low, high) ** 2 / mean(low**2, high**2), rel=1e-4)
    assert "importance/square" not in row


@every_loss
def test_a_resumed_run_is_the_same_to_the_last_bit(loss: str) -> None:
    """Weights and Adam's moments move into a fresh policy after two of four steps."""
    found = []
    for cut in (False, True):
        policy = Bigram()
        updater = make_updater(policy, loss, updates=2)
        for number in range(4):
            if cut and number == 2:
                saved = {name: updater.engine.read(name) for name in updater.engine.names}
                policy = Bigram()
                updater = make_updater(policy, loss, updates=2)
                for name, tensors in saved.items():
                    updater.engine.write(name, tensors)
            row = updater.step(Scored(draw(policy, first_seed=10 * number), ADV, ONES), number)
        found.append((weights(policy), row))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "root"])
def test_the_sums_are_those_of_the_loss_function(loss: str) -> None:
    """Terms over their count are `policy_loss` of one process, whose values are checked where it is tested."""
    policy = Bigram()
    (rollout,) = draw(policy)
    with torch.no_grad():
        policy.trainable[2].bias.add_(torch.linspace(-0.3, 0.3, 7))  # so that no ratio and no KL is trivial
    objective = make_updater(policy, loss).objective
    (batch,) = objective.batches(Scored([rollout], ADV, ONES), 0)
    terms, _ = objective.terms(batch, 0)
    fields = {"kind": loss, **LOSSES[loss]}
    replay = policy.replay(rollout, slice(0, rollout.logp_BS.shape[1]), reference=True)
    expected = policy_loss(
        replay.logp_BS,
        rollout.logp_BS,
        ADV,
        rollout.mask_BS,
        ref_BS=replay.reference_BS,
        kind=fields["kind"],
        level=fields.get("level", "token"),
        beta=fields.get("kl_beta", 0.0),
        max_completion_length=fields.get("longest"),
    )
    assert total(terms, objective.counts(batch)).item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected.item() != 0


def test_an_objective_of_flows_trains_it_too() -> None:
    """Flow-GRPO asks for `Replays` alone, and masks are the rollout's: the surrogate's mean is over the tokens that count."""
    whole, row = step("flow_grpo")
    _, cut = step("flow_grpo", micro=1)
    assert cut["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-5)
    assert gradient(whole).norm() > 0


def launch(out: Path, *cases: str) -> dict[str, Any]:
    """What two ranks find; a case is a loss and an engine, such as `dapo-none`."""
    return cases_on_ranks("tests.support.bigram_ranks", out, *cases)[0]


def check(found: dict[str, Any], cases: Sequence[str]) -> None:
    """Two ranks, of which the first has three micro-batches and the second one, take the steps of one rank."""
    for case in cases:
        loss, _ = case.split("-")
        expected = row_of(loss)
        assert expected["rows"][0]["grad_norm"] > 1e-3
        for row, other in zip(expected["rows"], found[case]["rows"], strict=True):
            assert other.keys() == row.keys()
            for name, value in row.items():
                assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (case, name)
        torch.testing.assert_close(
            torch.tensor(found[case]["weights"]), torch.tensor(expected["weights"]), rtol=1e-4, atol=1e-5
        )


def test_two_ranks_of_unequal_numbers_of_parts_are_one(tmp_path: Path) -> None:
    cases = [f"{loss}-none" for loss in (SHOWN, *GIVEN)]
    check(launch(tmp_path, *cases), cases)


@pytest.mark.slow
def test_two_ranks_are_one_for_every_loss_and_engine(tmp_path: Path) -> None:
    cases = [f"{loss}-none" for loss in LOSSES if loss != SHOWN] + [
        f"{loss}-{zero}" for loss in (SHOWN, *GIVEN) for zero in ("zero0", "zero2", "zero3")
    ]
    check(launch(tmp_path, *cases), cases)
