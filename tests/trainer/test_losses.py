"""Losses and their gradients by hand. Axes: B samples, S steps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.losses import clipped_surrogate, kl_penalty

ONES = torch.ones(1)


def _one(ratio: float, adv: float, clip_range: float | tuple[float, float] = 0.2) -> tuple[float, float, float]:
    """Loss, gradient with respect to logp, and clipped count of one term of weight 1."""
    logp = torch.tensor([[math.log(ratio)]], requires_grad=True)
    loss, stats = clipped_surrogate(logp, torch.zeros(1, 1), adv * ONES, ONES, clip_range=clip_range)
    (grad,) = torch.autograd.grad(loss, logp)
    return loss.item(), grad.item(), stats["clipped"].item()


@pytest.mark.parametrize(
    ("ratio", "adv", "loss", "grad", "clipped"),
    [
        # PPO (arXiv 1707.06347) eq. 7 and figure 1, clip .2. Inside, and where the clip would help the wrong way, the
        # loss is -A rho and d loss / d logp = -A rho; beyond the clip in the rewarded direction it is flat.
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.4, 0.0, 1),
        (0.5, 2.0, -1.0, -1.0, 0),
        (1.0, -2.0, 2.0, 2.0, 0),
        (0.9, -2.0, 1.8, 1.8, 0),
        (0.5, -2.0, 1.6, 0.0, 1),
        (1.5, -2.0, 3.0, 3.0, 0),
        (1.5, 0.0, 0.0, 0.0, 0),
    ],
)
def test_surrogate_by_hand(ratio: float, adv: float, loss: float, grad: float, clipped: int) -> None:
    assert _one(ratio, adv) == pytest.approx((loss, grad, clipped), abs=1e-5)


def test_clip_range_as_a_pair() -> None:
    """(lo, hi) is [1 + lo, 1 + hi]: with (-.1, .3) a ratio of 1.25 is inside, 1.4 and .8 are cut at 1.3 and .9."""
    pair = (-0.1, 0.3)
    assert _one(1.25, 1.0, pair) == pytest.approx((-1.25, -1.25, 0), abs=1e-5)
    assert _one(1.4, 1.0, pair) == pytest.approx((-1.3, 0, 1), abs=1e-5)
    assert _one(0.8, -1.0, pair) == pytest.approx((0.9, 0, 1), abs=1e-5)


def test_sum_weights_mask_and_stats_by_hand() -> None:
    """Ratios (1, 1.5), (.5, 2), (9, 9), (1, 1); advantages 1, -1, 5, 2; weights 1, 2, 0, 1; the last step of the
    last sample is masked; clip .2.

    Terms: -1 and -1.2 (clipped);  2 * (.8 clipped) and 2 * 2;  none;  -2.  Sum -1 - 1.2 + 1.6 + 4 - 2 = 1.4.
    Five terms count: ratios 1, 1.5, .5, 2, 1 sum to 6.
    """
    logp = torch.log(torch.tensor([[1, 1.5], [0.5, 2], [9, 9], [1, 1]]))
    mask = torch.tensor([[True, True], [True, True], [True, True], [True, False]])
    loss, stats = clipped_surrogate(
        logp,
        torch.zeros(4, 2),
        torch.tensor([1.0, -1.0, 5.0, 2.0]),
        torch.tensor([1.0, 2.0, 0.0, 1.0]),
        clip_range=0.2,
        mask_BS=mask,
    )
    assert loss.item() == pytest.approx(1.4, abs=1e-6)
    assert {key: value.item() for key, value in stats.items()} == pytest.approx(
        {"ratio_sum": 6, "ratio_min": 0.5, "ratio_max": 2, "clipped": 2, "count": 5}
    )


def test_first_ratio_is_exactly_one() -> None:
    """Equal log-probabilities of any size give the ratio 1, so the clip never cuts the first update."""
    logp = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 1e3
    adv = torch.randn(5, generator=torch.Generator().manual_seed(1))
    logp.requires_grad_()
    loss, stats = clipped_surrogate(logp, logp.detach(), adv, torch.ones(5), clip_range=1e-6)
    assert stats["ratio_min"].item() == stats["ratio_max"].item() == 1
    assert stats["clipped"].item() == 0
    (grad,) = torch.autograd.grad(loss, logp)
    assert grad.equal(-adv[:, None].expand(5, 3))


def test_ratio_is_float32_whatever_comes_in() -> None:
    """bfloat16 log-probabilities 1 and 1.0078125 (its next number) give exp(.0078125), which bfloat16 cannot hold."""
    new = torch.tensor([[1.0078125]], dtype=torch.bfloat16)
    old = torch.tensor([[1.0]], dtype=torch.bfloat16)
    loss, stats = clipped_surrogate(new, old, ONES.bfloat16(), ONES.double(), clip_range=0.5)
    assert loss.dtype == torch.float32
    assert stats["ratio_sum"].item() == pytest.approx(math.exp(0.0078125), rel=1e-6)


def test_what_does_not_count_never_leaks() -> None:
    """NaN and infinity under weight 0 or outside the mask reach neither the loss nor the gradient."""
    logp = torch.tensor([[0.0, math.nan], [math.inf, math.nan], [0.1, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True], [True, True]])
    adv = torch.tensor([1.0, math.nan, -1.0])
    weight = torch.tensor([1.0, 0.0, 1.0])
    loss, stats = clipped_surrogate(logp, torch.zeros(3, 2), adv, weight, clip_range=0.5, mask_BS=mask)
    (grad,) = torch.autograd.grad(loss, logp)
    assert loss.item() == pytest.approx(-1 + math.exp(0.1) + 1)
    assert grad.tolist() == [[-1, 0], [0, 0], pytest.approx([math.exp(0.1), 1])]
    assert all(value.isfinite() for value in stats.values())


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
def test_a_micro_batch_without_terms(shape: tuple[int, int]) -> None:
    """Every rank runs backward: no terms give a zero loss with a zero gradient, and neutral stats."""
    logp = torch.zeros(shape, requires_grad=True)
    loss, stats = clipped_surrogate(
        logp, torch.zeros(shape), torch.zeros(shape[0]), torch.zeros(shape[0]), clip_range=0.1
    )
    loss.backward()
    assert loss.item() == 0
    assert logp.grad is not None
    assert not logp.grad.any()
    assert [stats[key].item() for key in ("ratio_sum", "clipped", "count")] == [0, 0, 0]
    assert stats["ratio_min"].item() == math.inf
    assert stats["ratio_max"].item() == -math.inf


def test_only_the_present_logp_gets_a_gradient() -> None:
    logp, old, adv = (torch.zeros(2, 1, requires_grad=True) for _ in range(3))
    loss, stats = clipped_surrogate(logp, old, adv[:, 0] + 1, torch.ones(2), clip_range=0.1)
    loss.backward()
    assert logp.grad is not None
    assert old.grad is None
    assert adv.grad is None
    assert not any(value.requires_grad for value in stats.values())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), split=st.integers(0, 8))
def test_micro_batches_add_up(seed: int, split: int) -> None:
    """The sum over two parts is the sum over the whole, for the loss, the gradient and the counts."""
    generator = torch.Generator().manual_seed(seed)
    logp = 0.3 * torch.randn(8, 3, generator=generator)
    adv, weight = torch.randn(8, generator=generator), (torch.rand(8, generator=generator) > 0.3).float()
    mask = torch.rand(8, 3, generator=generator) > 0.2

    def run(rows: slice) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        part = logp[rows].clone().requires_grad_()
        loss, stats = clipped_surrogate(
            part, torch.zeros_like(part), adv[rows], weight[rows], clip_range=0.2, mask_BS=mask[rows]
        )
        return loss, torch.autograd.grad(loss, part)[0], stats

    whole, first, second = run(slice(0, 8)), run(slice(0, split)), run(slice(split, 8))
    torch.testing.assert_close(first[0] + second[0], whole[0], atol=1e-5, rtol=1e-5)
    assert torch.cat([first[1], second[1]]).equal(whole[1])
    for key in ("clipped", "count"):
        assert first[2][key] + second[2][key] == whole[2][key]
    assert min(first[2]["ratio_min"], second[2]["ratio_min"]) == whole[2]["ratio_min"]
    assert max(first[2]["ratio_max"], second[2]["ratio_max"]) == whole[2]["ratio_max"]


def test_kl_penalty_by_hand() -> None:
    """.5 * (1 + 2) + 2 * 3 with one NaN masked and one weight 0: 7.5; the gradient is the weight."""
    kl = torch.tensor([[1.0, 2.0], [3.0, math.nan], [math.nan, 9.0]], requires_grad=True)
    weight = torch.tensor([0.5, 2.0, 0.0])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    loss = kl_penalty(kl, weight, mask_BS=mask)
    (grad,) = torch.autograd.grad(loss, kl)
    assert loss.item() == 7.5
    assert grad.tolist() == [[0.5, 0.5], [2.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("clip_range", [-0.1, math.nan, (0.1, 0.2), (-0.2, -0.1), (0.2, -0.2)])
def test_impossible_clip_range(clip_range: float | tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"clip_range = .*needs c >= 0, or \(lo, hi\)"):
        _one(1.0, 1.0, clip_range)


def test_shapes_that_do_not_fit() -> None:
    logp, ones = torch.zeros(2, 3), torch.ones(2)
    with pytest.raises(ValueError, match=r"logp_old \(2, 1\)"):
        clipped_surrogate(logp, logp[:, :1], ones, ones, clip_range=0.1)
    with pytest.raises(ValueError, match=r"adv \(3,\)"):
        clipped_surrogate(logp, logp, torch.ones(3), ones, clip_range=0.1)
    with pytest.raises(ValueError, match=r"weight \(3,\)"):
        clipped_surrogate(logp, logp, torch.ones(3), torch.ones(3), clip_range=0.1)
    with pytest.raises(ValueError, match=r"mask \(2,\)"):
        kl_penalty(logp, ones, mask_BS=torch.ones(2, dtype=torch.bool))
