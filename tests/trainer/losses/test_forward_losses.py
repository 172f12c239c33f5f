"""Losses on the forward process, by hand. Axes: B samples, N pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainer.losses import diffuse, dpo_loss, matching_error, matching_logp, nft_loss, velocity_distance

ONE = torch.ones(1)


def test_diffuse_by_hand() -> None:
    """Rectified flow (arXiv 2209.03003 eq. 1): x = (1 - sigma) x0 + sigma * noise, per sample."""
    x0, noise = torch.tensor([[2.0, 4.0], [2.0, 4.0]]), torch.tensor([[0.0, 8.0], [6.0, 0.0]])
    x = diffuse(x0, noise, torch.tensor([0.25, 1.0]))
    assert x.tolist() == [[1.5, 5.0], [6.0, 0.0]]


def test_matching_error_by_hand() -> None:
    """Flow matching (arXiv 2210.02747 eq. 9, 23): target noise - x0 = (-2, 4); v = (0, 1) is off by (2, -3)."""
    v = torch.tensor([[0.0, 1.0]], requires_grad=True)
    error = matching_error(v, torch.tensor([[2.0, 4.0]]), torch.tensor([[0.0, 8.0]]))
    (grad,) = torch.autograd.grad(error.sum(), v)
    assert error.tolist() == [6.5]
    assert grad.tolist() == [[2.0, -3.0]]


def test_awms_log_probability_by_hand() -> None:
    """An error of 1/16: minus itself; with power 1/4 at noise level .5, -.5 / .25 * 1/2 = -1, less the 1e-10^.25 of the offset.

    The slope in the error is then -.5 * (1/16)^-.75 = -4, times d error / dv = 2 * 1/4.
    """
    v = torch.tensor([[0.25]], requires_grad=True)
    nought, half = torch.zeros(1, 1), 0.5 * ONE
    assert matching_logp(v, nought, nought, half).tolist() == [[-0.0625]]
    logp = matching_logp(v, nought, nought, half, power=0.25)
    (grad,) = torch.autograd.grad(logp.sum(), v)
    assert logp.item() == pytest.approx(-1 + 2 * 1e-10**0.25, rel=1e-6)
    assert grad.item() == pytest.approx(-2.0, rel=1e-5)
    at_nought = torch.zeros(1, 1, requires_grad=True)
    (grad,) = torch.autograd.grad(matching_logp(at_nought, nought, nought, half, power=0.25).sum(), at_nought)
    assert grad.item() == 0.0


def test_velocity_distance_by_hand() -> None:
    assert velocity_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).tolist() == [[2.5]]


def nft(v: float, adv: float, *, v_old: float = 0.0, beta: float = 0.5, weight: float = 1.0) -> tuple[float, float]:
    """Loss and gradient for one number: x0 = 1, x = 2, sigma = .5, adv_clip = 4."""
    v_1 = torch.tensor([[v]], requires_grad=True)
    loss, _ = nft_loss(
        v_1,
        torch.tensor([[v_old]]),
        torch.tensor([[2.0]]),
        torch.tensor([[1.0]]),
        0.5 * ONE,
        adv * ONE,
        weight * ONE,
        beta=beta,
        adv_clip=4.0,
    )
    (grad,) = torch.autograd.grad(loss, v_1)
    return loss.item(), grad.item()


def test_nft_by_hand() -> None:
    """DiffusionNFT (arXiv 2509.16117) Theorem 3.2 with its adaptive weights.

    v = 1, v_old = 0, beta = .5: v+ = .5, v- = -.5; x0(v+) = 2 - .25 = 1.75, x0(v-) = 2.25, off from 1 by .75 and 1.25.
    Weighted by the distance without gradient the errors are .75 and 1.25. A = 2 of 4 gives r = .75, and adv_clip / beta is
    8: loss = 8 * (.75 * .75 + .25 * 1.25) = 7. d/dv of .75^2 / .75 is 2 * (-.25) = -.5, of 1.25^2 / 1.25 it is +.5:
    gradient = 8 * (.75 * -.5 + .25 * .5) = -2.
    """
    assert nft(1.0, 2.0) == pytest.approx((7.0, -2.0))


@pytest.mark.parametrize(("adv", "r"), [(-9.0, 0.0), (-4.0, 0.0), (0.0, 0.5), (1.0, 0.625), (4.0, 1.0), (9.0, 1.0)])
def test_nft_reward_is_the_clipped_advantage(adv: float, r: float) -> None:
    """r = clip(A / adv_clip, -1, 1) / 2 + 1/2."""
    assert nft(1.0, adv)[0] == pytest.approx(8 * (r * 0.75 + (1 - r) * 1.25))


def test_nft_on_policy_pulls_by_the_advantage_alone() -> None:
    """At v = v_old both branches are at one place, so the gradient is that of (2 r - 1) |x0(v) - x0|^2 / w times adv_clip."""
    assert nft(0.0, 4.0)[1] == pytest.approx(4 * 2 * -0.5)
    assert nft(0.0, -4.0)[1] == pytest.approx(4 * 2 * 0.5)
    assert nft(0.0, 0.0)[1] == 0
    assert nft(0.0, 4.0, beta=0.1)[1] == pytest.approx(nft(0.0, 4.0, beta=1.0)[1])


def test_nft_weights_and_stats() -> None:
    """Three samples of which one has no weight, NaN in its advantage; sums are over the two others."""
    v = torch.tensor([[1.0], [1.0], [5.0]], requires_grad=True)
    adv = torch.tensor([2.0, -2.0, math.nan])
    loss, stats = nft_loss(
        v,
        torch.zeros(3, 1),
        torch.full((3, 1), 2.0),
        torch.ones(3, 1),
        torch.full((3,), 0.5),
        adv,
        torch.tensor([1.0, 2.0, 0.0]),
        beta=0.5,
        adv_clip=4.0,
    )
    (grad,) = torch.autograd.grad(loss, v)
    assert loss.item() == pytest.approx(7 + 2 * 8 * (0.25 * 0.75 + 0.75 * 1.25))
    assert grad.flatten().tolist() == pytest.approx([-2, 4, 0])
    assert stats.count == 2
    assert {name: value.item() for name, value in stats.sums.items()} == pytest.approx(
        {"nft/reward": 1.0, "nft/positive": 1.5, "nft/negative": 2.5, "nft/drift": 2.0}
    )


def dpo(better: Tensor, worse: Tensor, weight: Tensor = ONE) -> tuple[Tensor, dict[str, float]]:
    loss, stats = dpo_loss(
        better, worse, 0.5 * torch.ones_like(better), 0.25 * torch.ones_like(worse), weight, beta=4.0
    )
    return loss, {name: value.item() for name, value in stats.sums.items()}


def test_dpo_by_hand() -> None:
    """Diffusion-DPO (arXiv 2311.12908) eq. 14, beta 4: better .5 -> .4, worse .25 -> .45, so the margin is .2 + .1 = .3.

    loss = -log sigmoid(2 * .3) = log(1 + exp(-.6)); d loss / d better = 2 * sigmoid(-.6) = -d loss / d worse.
    """
    better, worse = torch.tensor([0.4], requires_grad=True), torch.tensor([0.45], requires_grad=True)
    loss, sums = dpo(better, worse)
    by_better, by_worse = torch.autograd.grad(loss, (better, worse))
    slope = 2 / (1 + math.exp(0.6))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.6)))
    assert by_better.item() == pytest.approx(slope)
    assert by_worse.item() == pytest.approx(-slope)
    assert sums == pytest.approx({"dpo/margin": 0.3, "dpo/accuracy": 1})


def test_dpo_starts_at_log_two() -> None:
    """A policy that is its reference tells nothing apart: log 2 a pair; pairs of weight 0 are left out, NaN included."""
    better = torch.tensor([0.5, math.nan, 0.5], requires_grad=True)
    loss, sums = dpo(better, torch.full((3,), 0.25), torch.tensor([1.0, 0.0, 1.0]))
    (grad,) = torch.autograd.grad(loss, better)
    assert loss.item() == pytest.approx(2 * math.log(2))
    assert grad.tolist() == pytest.approx([1, 0, 1])
    assert sums == {"dpo/margin": 0, "dpo/accuracy": 0}
