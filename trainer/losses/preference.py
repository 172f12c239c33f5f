"""Preference losses: which of two answers is the better one. Axes: B rows, N pairs, S tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from trainer.losses.ratios import log_ratios, row_mean

PreferenceKind = Literal["sigmoid", "hinge", "ipo", "ipo_sum", "robust"]


def preference_loss(
    logp_BS: Tensor,
    ref_BS: Tensor,
    mask_BS: Tensor,
    *,
    kind: PreferenceKind = "sigmoid",
    beta: float = 0.1,
    smoothing: float = 0.0,
) -> Tensor:
    """The mean loss of one process on a batch of pairs, 0-d float32, differentiable in `logp_BS`.

    Args:
        logp_BS: log-probabilities of the answers' tokens; row i of the first half is the chosen answer of pair i, row i of the
            second half the rejected one.
        ref_BS: those under the reference.
        mask_BS: other than 0 where a token counts; what lies under the mask is never read, NaN included.
        kind, beta, smoothing: as in `preference_terms`.

    Raises:
        ValueError: shapes differ, the rows are no pairs, or `smoothing` cannot act.
    """
    if ref_BS.shape != logp_BS.shape or mask_BS.shape != logp_BS.shape:
        raise ValueError(
            f"shapes do not fit: logp {tuple(logp_BS.shape)}, ref {tuple(ref_BS.shape)}, mask {tuple(mask_BS.shape)}"
        )
    if len(logp_BS) % 2 or not len(logp_BS):
        raise ValueError(f"{len(logp_BS)} rows are no pairs: give the chosen answers, then as many rejected ones")
    counts_BS = mask_BS != 0
    chosen_N, rejected_N = answer_log_ratios(log_ratios(logp_BS, ref_BS, counts_BS), counts_BS, kind).chunk(2)
    return preference_terms(chosen_N - rejected_N, kind=kind, beta=beta, smoothing=smoothing).mean()


def answer_log_ratios(log_ratio_BS: Tensor, counts_BS: Tensor, kind: PreferenceKind) -> Tensor:
    """(B,): the log-ratio of each answer from those of its tokens, which are 0 where nothing counts.

    `ipo` compares means over tokens, every other kind the probabilities of whole answers.
    """
    return (row_mean(log_ratio_BS, counts_BS) if kind == "ipo" else log_ratio_BS.sum(1, keepdim=True))[:, 0]


def preference_terms(
    margin_N: Tensor, *, kind: PreferenceKind = "sigmoid", beta: float = 0.1, smoothing: float = 0.0
) -> Tensor:
    """The loss of each pair from its margin d, how much further than the reference the policy tells the two apart.

    sigmoid   -(1 - s) log sigmoid(beta d) - s log sigmoid(-beta d): DPO (arXiv 2305.18290 eq. 7), with a share s of labels taken
              for wrong (conservative DPO, Mitchell 2023)
    robust    [-(1 - s) log sigmoid(beta d) + s log sigmoid(-beta d)] / (1 - 2 s): unbiased under wrong labels (arXiv 2403.00409)
    hinge     max(0, 1 - beta d): SLiC (arXiv 2305.10425)
    ipo       (d - 1 / (2 beta))^2: IPO (arXiv 2310.12036 eq. 17), d of means over tokens
    ipo_sum   the same of sums over tokens

    Args:
        margin_N: chosen minus rejected log-ratio.
        beta: strength of the tie to the reference, above 0.
        smoothing: the share s in [0, 0.5) of wrong labels; of sigmoid and robust alone.
    """
    if not 0 <= smoothing < 0.5 or (smoothing and kind not in ("sigmoid", "robust")):
        raise ValueError(f"smoothing = {smoothing:g} with kind {kind!r}: needs [0, 0.5), and sigmoid or robust to act")
    if kind == "hinge":
        return torch.relu(1 - beta * margin_N)
    if kind in ("ipo", "ipo_sum"):
        return (margin_N - 1 / (2 * beta)) ** 2
    if kind not in ("sigmoid", "robust"):
        raise ValueError(f"kind = {kind!r}: must be sigmoid, hinge, ipo, ipo_sum or robust")
    right_N = -functional.logsigmoid(beta * margin_N)
    if not smoothing:
        return right_N
    wrong_N = -functional.logsigmoid(-beta * margin_N)
    if kind == "sigmoid":
        return (1 - smoothing) * right_N + smoothing * wrong_N
    return ((1 - smoothing) * right_N - smoothing * wrong_N) / (1 - 2 * smoothing)
