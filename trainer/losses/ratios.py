"""Probability ratios, and what is computed from them alone. Axes: B rows (samples), S steps or tokens.

Every function takes `counts_BS` (bool) and gives the neutral value where it is False, whatever lies there: junk and NaN
under a mask neither change a value nor pass a gradient on.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_ratios(logp_BS: Tensor, old_BS: Tensor, counts_BS: Tensor) -> Tensor:
    """logp - old, float32, 0 where nothing counts; differentiable in `logp_BS` alone."""
    # The selection comes before any exp: exp of junk may be infinite, and 0 * inf is NaN in the backward pass.
    return torch.where(counts_BS, logp_BS.float() - old_BS.float().detach(), 0.0)


def row_mean(values_BS: Tensor, counts_BS: Tensor) -> Tensor:
    """(B, 1): the mean over what counts in each row, 0 for a row without any; `values_BS` is 0 where nothing counts."""
    return values_BS.sum(1, keepdim=True) / counts_BS.sum(1, keepdim=True).clamp(min=1)


def row_log_ratios(log_ratio_BS: Tensor, counts_BS: Tensor) -> Tensor:
    """One log-ratio a row, repeated over its tokens: the mean of its tokens' (GSPO, arXiv 2507.18071 eq. 7).

    The mean is the length-normalised ratio of the whole sequence, (pi(y) / pi_old(y)) ** (1 / |y|).
    """
    return torch.where(counts_BS, row_mean(log_ratio_BS, counts_BS), 0.0)


def k3(log_ratio_BS: Tensor) -> Tensor:
    """The KL to a reference from samples: exp(-x) + x - 1 with x = logp - ref (Schulman's k3; arXiv 2402.03300 eq. 4).

    It is never negative, 0 at equal weights, and unbiased for samples of the present policy.
    """
    return torch.exp(-log_ratio_BS) + log_ratio_BS - 1


def near_policy_rows(log_ratio_BS: Tensor, adv_B: Tensor, counts_BS: Tensor, threshold: float) -> Tensor:
    """(B, 1) bool: False for rows of negative advantage whose mean of old - logp is above `threshold`.

    Off-policy sequence masking of DeepSeek-V3.2 (arXiv 2512.02556): what is far from the policy and bad teaches nothing
    that the policy could still do.
    """
    drift_B1 = -row_mean(log_ratio_BS.detach(), counts_BS)
    return (adv_B >= 0)[:, None] | (drift_B1 <= threshold)
