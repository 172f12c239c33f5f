"""Losses on the forward process of a rectified flow: noise a clean sample, look at the velocity predicted there.

x = (1 - sigma) x0 + sigma * noise, whose velocity is noise - x0. No step of the sampler is needed, so any solver will do.
Axes: B samples, N pairs. Tensors (B, ...) have any shape per sample; everything is computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses.preference import preference_terms
from trainer.losses.terms import Stats, counting_terms, mean_over_latents, total, weighted_sum

_LEAST_DIVISOR = 1e-5  # of the adaptive weights of DiffusionNFT, as published
_LEAST_ERROR = 1e-10  # below a power, as published


def diffuse(x0: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
    """x = (1 - sigma) x0 + sigma * noise, the shape of x0 (Flow Matching, arXiv 2210.02747; Rectified Flow, 2209.03003)."""
    sigma = _per_sample(sigma_B, x0)
    return (1 - sigma) * x0.float() + sigma * noise.float()


def matching_error(v: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Flow-matching error_B: the mean over latents of (v - (noise - x0))^2, differentiable in v."""
    return mean_over_latents((v.float() - (noise.float() - x0.float())) ** 2)


def matching_logp(v: Tensor, x0: Tensor, noise: Tensor, sigma_B: Tensor, *, power: float | None = None) -> Tensor:
    """logp_B1 (B, 1), float32, differentiable in v: what stands for a sample's log-probability in AWM (arXiv 2509.25050).

    Without a power, minus the matching error, a term of the ELBO with one weight at all noise levels, as in the paper. With
    power p, as in its published recipes (p = 1/4):

        logp = -sigma / p * ((error + c)^p - c^p),   c = 1e-10

    Its derivative, -sigma * error^(p - 1), is that of -sigma * error where the error is 1 and larger below. c keeps it finite
    where the error is 0, as logp is there.
    """
    error_B = matching_error(v, x0, noise)
    if power is not None:
        error_B = sigma_B.float() / power * ((error_B + _LEAST_ERROR) ** power - _LEAST_ERROR**power)
    return -error_B[:, None]


def velocity_distance(v: Tensor, v_ref: Tensor) -> Tensor:
    """kl_B1 (B, 1): the mean over latents of (v - v_ref)^2, the KL of two flows at one noise level without its weight."""
    return mean_over_latents((v.float() - v_ref.float()) ** 2)[:, None]


def nft_loss(
    v: Tensor,
    v_old: Tensor,
    x: Tensor,
    x0: Tensor,
    sigma_B: Tensor,
    adv_B: Tensor,
    weight_B: Tensor,
    *,
    beta: float,
    adv_clip: float,
) -> tuple[Tensor, Stats]:
    """DiffusionNFT (arXiv 2509.16117): the policy is the difference between a positive and a negative branch, summed over B.

    Theorem 3.2, with r = clip(A / adv_clip, -1, 1) / 2 + 1/2 the probability that a sample is good:

        v+ = (1 - beta) v_old + beta v,    v- = (1 + beta) v_old - beta v,    x0(v) = x - sigma v
        loss = adv_clip / beta * [r |x0(v+) - x0|^2 / w+ + (1 - r) |x0(v-) - x0|^2 / w-]

    with the adaptive weights w of section 3.3, the mean of |x0(v) - x0| without gradient. The leading factor is the
    published implementation's; it keeps the gradient's size when beta changes.

    Args:
        v, v_old: velocities at x under the trained and under the sampling policy; v is differentiable.
        x, x0: noised and clean latents.
        sigma_B: noise level of x, in (0, 1].
        beta: how far the branches lie from the sampling policy, above 0.
        adv_clip: the advantage that counts as surely good.

    Returns:
        The loss sum (0-d float32), and `nft/reward` (r), `nft/positive` and `nft/negative` (each branch's weighted error),
        `nft/drift` (squared distance of v from v_old).
    """
    counts_B = counting_terms(adv_B[:, None], weight_B)[:, 0]
    # A clipped advantage of -adv_clip to adv_clip becomes a probability of 0 to 1.
    reward_B = torch.where(counts_B, adv_B.float().detach(), 0.0).clamp(-adv_clip, adv_clip) / (2 * adv_clip) + 0.5
    v, v_old, sigma = v.float(), v_old.float().detach(), _per_sample(sigma_B, x)
    # The velocity v_old +- beta (v - v_old) in x0 = x - sigma v: on each side as far from v_old as the other.
    positive_B = _adaptive_error(x - sigma * (v_old + beta * (v - v_old)), x0)
    negative_B = _adaptive_error(x - sigma * (v_old - beta * (v - v_old)), x0)
    term_B = (reward_B * positive_B + (1 - reward_B) * negative_B) * (adv_clip / beta)
    stats = Stats(
        count=counts_B.sum().float(),
        sums={
            "nft/reward": total(reward_B, counts_B),
            "nft/positive": total(positive_B, counts_B),
            "nft/negative": total(negative_B, counts_B),
            "nft/drift": total(mean_over_latents((v - v_old) ** 2), counts_B),
        },
    )
    return weighted_sum(term_B[:, None], weight_B, counts_B[:, None]), stats


def dpo_loss(
    better_N: Tensor, worse_N: Tensor, ref_better_N: Tensor, ref_worse_N: Tensor, weight_N: Tensor, *, beta: float
) -> tuple[Tensor, Stats]:
    """Diffusion-DPO (arXiv 2311.12908 eq. 14), summed over N pairs:

        loss = -log sigmoid(-beta / 2 * [(better - ref_better) - (worse - ref_worse)])

    of matching errors at one noise level and one noise per pair; the weights of the noise levels and the number of steps
    are taken into beta, as in its published implementation. An error of velocities is that of the noise divided by
    (1 - sigma)^2, so a beta for velocities is smaller.

    Args:
        better_N, worse_N: matching errors under the trained policy, differentiable.
        ref_better_N, ref_worse_N: those under the reference.
        weight_N: 0 for pairs that must not train.
        beta: strength of the tie to the reference, above 0.

    Returns:
        The loss sum (0-d float32), and `dpo/margin` (how much further than the reference the policy tells the two apart)
        and `dpo/accuracy` (share of pairs with a positive margin).
    """
    counts_N = counting_terms(better_N[:, None], weight_N)[:, 0]
    margin_N = (worse_N - ref_worse_N.detach()) - (better_N - ref_better_N.detach())
    # A pair of weight 0 may hold anything; its margin is 0, so that no NaN reaches the backward pass.
    margin_N = torch.where(counts_N, margin_N.float(), 0.0)
    term_N = preference_terms(margin_N, beta=beta / 2)  # a Gaussian's log-ratio is half of that of errors
    stats = Stats(
        count=counts_N.sum().float(),
        sums={"dpo/margin": total(margin_N, counts_N), "dpo/accuracy": total(margin_N > 0, counts_N)},
    )
    return weighted_sum(term_N[:, None], weight_N, counts_N[:, None]), stats


def _adaptive_error(predicted: Tensor, x0: Tensor) -> Tensor:
    """The squared distance over the mean distance, which bounds the gradient's size whatever the noise level."""
    distance = predicted - x0.float()
    divisor_B = mean_over_latents(distance.detach().abs()).clamp(min=_LEAST_DIVISOR)
    return mean_over_latents(distance**2) / divisor_B


def _per_sample(values_B: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ...), to be multiplied with the latents."""
    return values_B.float().view(-1, *[1] * (like.dim() - 1))
