"""Preference losses: which of two answers is the better one. Axes: B rows, N pairs, S tokens.

Most kinds are a function of a pair's margin alone. `bco_pair`, `aot` and `aot_unpaired` compare a pair with others: what they take
from them is computed from all pairs of a step at once (`others_of`), so that micro-batches and ranks do not change a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid as log_sigmoid

from trainer.losses.ratios import log_ratios, row_mean

PreferenceKind = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "ipo_sum", "robust", "exo_pair", "discopop", "nca_pair", "sppo_hard", "apo_zero",
    "apo_down", "bco_pair", "aot", "aot_unpaired", "sft",
]  # fmt: skip
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence"]
OF_STEP = frozenset({"bco_pair", "aot", "aot_unpaired"})  # what they take from other pairs: `others_of`
SMOOTHED = frozenset({"sigmoid", "robust", "exo_pair", "aot", "aot_unpaired"})
OF_MEANS = frozenset({"ipo", "sigmoid_norm"})  # of means over tokens; the others are of sums
_DISCOPOP_TAU = 0.05  # of the published loss


@dataclass(frozen=True)
class PairRatios:
    """What a preference loss sees of N pairs.

    Attributes:
        chosen_N, rejected_N: log-ratios of the answers, policy to reference.
        ref_margin_N: chosen minus rejected log-probability under the reference, without gradient.
    """

    chosen_N: Tensor
    rejected_N: Tensor
    ref_margin_N: Tensor

    @property
    def margin_N(self) -> Tensor:
        """How much further than the reference the policy tells the two apart."""
        return self.chosen_N - self.rejected_N


def preference_loss(
    logp_BS: Tensor,
    ref_BS: Tensor,
    mask_BS: Tensor,
    *,
    kind: PreferenceKind = "sigmoid",
    beta: float = 0.1,
    smoothing: float = 0.0,
    divergence: Divergence = "reverse_kl",
    ld_alpha: float = 1.0,
) -> Tensor:
    """The mean loss of one process on a batch of pairs, 0-d float32, differentiable in `logp_BS`.

    Args:
        logp_BS: log-probabilities of the answers' tokens; row i of the first half is the chosen answer of pair i, row i of the
            second half the rejected one.
        ref_BS: those under the reference.
        mask_BS: other than 0 where a token counts; what lies under the mask is never read, NaN included.
        kind, beta, smoothing, divergence: as in `pair_terms`; `sft` is the mean over the chosen answers' tokens of -logp.
        ld_alpha: as in `pair_ratios`.

    Raises:
        ValueError: shapes differ, the rows are no pairs, or an option cannot act.
    """
    if ref_BS.shape != logp_BS.shape or mask_BS.shape != logp_BS.shape:
        raise ValueError(
            f"shapes do not fit: logp {tuple(logp_BS.shape)}, ref {tuple(ref_BS.shape)}, mask {tuple(mask_BS.shape)}"
        )
    if len(logp_BS) % 2 or not len(logp_BS):
        raise ValueError(f"{len(logp_BS)} rows are no pairs: give the chosen answers, then as many rejected ones")
    counts_BS = mask_BS != 0
    if kind == "sft":
        return chosen_nll(logp_BS, counts_BS) / counts_BS.chunk(2)[0].sum()
    pairs = pair_ratios(logp_BS, ref_BS, counts_BS, kind, ld_alpha=ld_alpha)
    others_2N = others_of(pairs, kind, beta) if kind in OF_STEP else None
    return pair_terms(
        pairs, kind=kind, beta=beta, smoothing=smoothing, divergence=divergence, others_2N=others_2N
    ).mean()


def chosen_nll(logp_BS: Tensor, counts_BS: Tensor) -> Tensor:
    """-logp, added up over the tokens of the chosen answers: the loss of kind `sft`, 0-d."""
    chosen_NS, counts_NS = logp_BS.chunk(2)[0], counts_BS.chunk(2)[0]
    return -torch.where(counts_NS, chosen_NS.float(), 0.0).sum()


def pair_ratios(
    logp_BS: Tensor, ref_BS: Tensor, counts_BS: Tensor, kind: PreferenceKind, *, ld_alpha: float = 1.0
) -> PairRatios:
    """The log-ratios of N pairs from those of their tokens; rows as in `preference_loss`.

    Args:
        ld_alpha: weight in [0, 1] of an answer's tokens beyond the length that both answers of its pair have (LD-DPO, arXiv
            2409.06411); 1 is DPO.
    """
    log_ratio_BS = log_ratios(logp_BS, ref_BS, counts_BS)
    ref_BS = torch.where(counts_BS, ref_BS.float().detach(), 0.0)
    if ld_alpha != 1:
        shared_N = torch.minimum(*counts_BS.sum(1).chunk(2))
        is_shared_BS = counts_BS.cumsum(1) <= torch.cat([shared_N, shared_N])[:, None]
        weight_BS = torch.where(is_shared_BS, 1.0, ld_alpha)
        log_ratio_BS, ref_BS = weight_BS * log_ratio_BS, weight_BS * ref_BS
    if kind in OF_MEANS:
        ratio_B, ref_B = row_mean(log_ratio_BS, counts_BS)[:, 0], row_mean(ref_BS, counts_BS)[:, 0]
    else:
        ratio_B, ref_B = log_ratio_BS.sum(1), ref_BS.sum(1)
    ref_chosen_N, ref_rejected_N = ref_B.chunk(2)
    chosen_N, rejected_N = ratio_B.chunk(2)
    return PairRatios(chosen_N, rejected_N, ref_chosen_N - ref_rejected_N)


@torch.no_grad()
def others_of(pairs: PairRatios, kind: PreferenceKind, beta: float) -> Tensor:
    """(2, N): what the loss of each pair takes from the other pairs, for its chosen and for its rejected answer.

    Args:
        pairs: all pairs of a step, of all ranks.
        kind: bco_pair: the mean reward of all answers, twice. aot_unpaired: the rejected log-ratio at the same place when both
            lists are sorted, and the chosen one. aot: what to add to the margin so that the reference's margin of this pair is
            exchanged for that at the same place when both lists of margins are sorted, and 0.
    """
    chosen_N, rejected_N, ref_N = pairs.chosen_N, pairs.rejected_N, pairs.ref_margin_N
    if kind == "bco_pair":
        return (beta * torch.cat([chosen_N, rejected_N]).mean()).expand(2, len(chosen_N)).clone()
    if kind == "aot_unpaired":
        return torch.stack([_at_same_place(chosen_N, rejected_N), _at_same_place(rejected_N, chosen_N)])
    assert kind == "aot", "the other kinds take nothing from other pairs"
    shift_N = ref_N - _at_same_place(pairs.margin_N + ref_N, ref_N)
    return torch.stack([shift_N, torch.zeros_like(shift_N)])


def _at_same_place(of_N: Tensor, in_N: Tensor) -> Tensor:
    """For each number of the first list, the one that has its place in the second when both are sorted."""
    found_N = torch.empty_like(in_N)
    found_N[of_N.argsort(stable=True)] = in_N.sort(stable=True).values
    return found_N


def pair_terms(
    pairs: PairRatios,
    *,
    kind: PreferenceKind = "sigmoid",
    beta: float = 0.1,
    smoothing: float = 0.0,
    divergence: Divergence = "reverse_kl",
    others_2N: Tensor | None = None,
) -> Tensor:
    """The loss of each pair, (N,), from the log-ratios c (chosen) and r (rejected), and their difference d.

    sigmoid       with `divergence` reverse_kl a function of d (`preference_terms`), as are sigmoid_norm, hinge, ipo, ipo_sum, robust,
                  exo_pair and discopop. With another one d is f'(e^c) - f'(e^r) (f-DPO, arXiv 2309.16240): f' is -1/u for
                  forward_kl, log(2u / (1 + u)) for js_divergence
    nca_pair      -log sigmoid(beta c) - [log sigmoid(-beta c) + log sigmoid(-beta r)] / 2: NCA (arXiv 2402.05369)
    sppo_hard     (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2: SPPO (arXiv 2405.00675 eq. 4.7), where the chosen answer surely wins
    apo_zero      1 - sigmoid(beta c) + sigmoid(beta r): APO (arXiv 2408.06266 eq. 7), raises c and lowers r
    apo_down      sigmoid(beta c) + 1 - sigmoid(beta d): APO (eq. 8), lowers both and r more
    bco_pair      -log sigmoid(beta c - o) - log sigmoid(o - beta r), o the mean reward of the step's answers: BCO (arXiv 2404.04656)
    aot           sigmoid's loss of the k-th smallest policy margin less the k-th smallest reference margin: AOT (arXiv 2406.05882)
    aot_unpaired  sigmoid's loss of the k-th smallest c less the k-th smallest r (same)

    Args:
        others_2N: `others_of` the whole step, for bco_pair, aot, aot_unpaired.

    Raises:
        ValueError: an option cannot act with this kind.
    """
    if divergence != "reverse_kl" and kind != "sigmoid":
        raise ValueError(f"divergence = {divergence} with kind {kind!r}: acts in sigmoid alone")
    chosen_N, rejected_N = pairs.chosen_N, pairs.rejected_N
    if kind in _OF_ANSWERS:
        return _OF_ANSWERS[kind](chosen_N, rejected_N, beta)
    if kind not in OF_STEP:
        return preference_terms(_divergent(pairs, divergence), kind=kind, beta=beta, smoothing=smoothing)
    if others_2N is None:
        raise ValueError(f"kind {kind!r} compares a pair with the others of its step: give others_2N")
    of_chosen_N, of_rejected_N = others_2N
    if kind == "bco_pair":
        return -log_sigmoid(beta * chosen_N - of_chosen_N) - log_sigmoid(of_rejected_N - beta * rejected_N)
    if kind == "aot":
        return preference_terms(pairs.margin_N + of_chosen_N, beta=beta, smoothing=smoothing)
    as_chosen_N = preference_terms(chosen_N - of_chosen_N, beta=beta, smoothing=smoothing)
    as_rejected_N = preference_terms(of_rejected_N - rejected_N, beta=beta, smoothing=smoothing)
    # Over the step both have the same sum. The second is added for its gradient alone: its rejected answers are those that the
    # first took as constants.
    return as_chosen_N + (as_rejected_N - as_rejected_N.detach())


def _nca(chosen_N: Tensor, rejected_N: Tensor, beta: float) -> Tensor:
    return -log_sigmoid(beta * chosen_N) - (log_sigmoid(-beta * chosen_N) + log_sigmoid(-beta * rejected_N)) / 2


def _sppo(chosen_N: Tensor, rejected_N: Tensor, beta: float) -> Tensor:
    return (chosen_N - 1 / (2 * beta)) ** 2 + (rejected_N + 1 / (2 * beta)) ** 2


def _apo_zero(chosen_N: Tensor, rejected_N: Tensor, beta: float) -> Tensor:
    return 1 - torch.sigmoid(beta * chosen_N) + torch.sigmoid(beta * rejected_N)


def _apo_down(chosen_N: Tensor, rejected_N: Tensor, beta: float) -> Tensor:
    return torch.sigmoid(beta * chosen_N) + 1 - torch.sigmoid(beta * (chosen_N - rejected_N))


_OF_ANSWERS = {"nca_pair": _nca, "sppo_hard": _sppo, "apo_zero": _apo_zero, "apo_down": _apo_down}


def _divergent(pairs: PairRatios, divergence: Divergence) -> Tensor:
    """f'(e^c) - f'(e^r), of which constants fall out."""
    if divergence == "reverse_kl":
        return pairs.margin_N
    if divergence == "forward_kl":
        return torch.exp(-pairs.rejected_N) - torch.exp(-pairs.chosen_N)
    return log_sigmoid(pairs.chosen_N) - log_sigmoid(pairs.rejected_N)


def preference_terms(
    margin_N: Tensor, *, kind: PreferenceKind = "sigmoid", beta: float = 0.1, smoothing: float = 0.0
) -> Tensor:
    """The loss of each pair from its margin d, how much further than the reference the policy tells the two apart.

    sigmoid   -(1 - s) log sigmoid(beta d) - s log sigmoid(-beta d): DPO (arXiv 2305.18290 eq. 7), with a share s of labels taken
              for wrong (conservative DPO, Mitchell 2023)
    sigmoid_norm  the same with s = 0 and d of means over tokens: length-normalised DPO (Tulu 3, arXiv 2411.15124)
    robust    [-(1 - s) log sigmoid(beta d) + s log sigmoid(-beta d)] / (1 - 2 s): unbiased under wrong labels (arXiv 2403.00409)
    hinge     max(0, 1 - beta d): SLiC (arXiv 2305.10425)
    ipo       (d - 1 / (2 beta))^2: IPO (arXiv 2310.12036 eq. 17), d of means over tokens
    ipo_sum   the same of sums over tokens
    exo_pair  KL of (p, 1 - p) from (1 - s, s) with p = sigmoid(beta d): EXO (arXiv 2402.00856 eq. 16)
    discopop  (1 - m) sigmoid's loss + m exp(-beta d) with m = sigmoid(beta d / 0.05): DiscoPOP (arXiv 2406.08414 eq. 5)

    Args:
        margin_N: chosen minus rejected log-ratio.
        beta: strength of the tie to the reference, above 0.
        smoothing: the share s in [0, 0.5) of wrong labels, where it acts (`SMOOTHED`); above 0 in exo_pair.
    """
    if not 0 <= smoothing < 0.5 or (smoothing and kind not in SMOOTHED) or (kind == "exo_pair" and not smoothing):
        raise ValueError(
            f"smoothing = {smoothing:g} with kind {kind!r}: needs [0, 0.5), and one of {', '.join(sorted(SMOOTHED))} to act; "
            "exo_pair needs it above 0"
        )
    scaled_N = beta * margin_N
    if kind == "hinge":
        return torch.relu(1 - scaled_N)
    if kind in ("ipo", "ipo_sum"):
        return (margin_N - 1 / (2 * beta)) ** 2
    right_N, wrong_N = -log_sigmoid(scaled_N), -log_sigmoid(-scaled_N)
    if kind == "exo_pair":
        share_N = torch.sigmoid(scaled_N)
        return share_N * (-right_N - math.log(1 - smoothing)) + (1 - share_N) * (-wrong_N - math.log(smoothing))
    if kind == "discopop":
        much_N = torch.sigmoid(scaled_N / _DISCOPOP_TAU)
        # exp(-z) * m in one exp: apart they would be infinity times 0 where z is far below 0.
        return (1 - much_N) * right_N + torch.exp(log_sigmoid(scaled_N / _DISCOPOP_TAU) - scaled_N)
    if kind not in ("sigmoid", "sigmoid_norm", "robust"):
        raise ValueError(
            f"kind = {kind!r} has no loss of a margin; the kinds are {', '.join(get_args(PreferenceKind))}"
        )
    if kind == "robust":
        return ((1 - smoothing) * right_N - smoothing * wrong_N) / (1 - 2 * smoothing)
    return (1 - smoothing) * right_N + smoothing * wrong_N if smoothing else right_N
