"""The estimators. Axes: B samples, R rewards. Each returns

adv_B     float32, 0 where nothing can be said,
weight_B  float32, 1 where the sample counts in the loss, 0 where it has no valid reward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from trainer.advantages.statistics import (
    Reduce,
    alike,
    check_scores,
    check_weights,
    divisor,
    moments,
    standardize,
    whiten,
)


def gdpo(
    scores_BR: Tensor,
    valid_BR: Tensor,
    group_B: Tensor,
    weights_BR: Tensor,
    *,
    eps: float = 1e-4,
    min_valid: int = 2,
    std_floor_R: Tensor | None = None,
    reduce: Reduce | None = None,
    ddof: int = 1,
) -> tuple[Tensor, Tensor]:
    """GDPO (arXiv 2601.05242): normalise each reward in its group, sum with weights, whiten over the batch.

    z_r = (s_r - mean_g) / (std_g + eps), a = sum_r w_r z_r, adv = (a - mean a) / (std a + eps), the last over the
    valid samples of all ranks. Each reward is normalised over its own valid scores, so a missing one takes nothing from
    the others.

    Args:
        scores_BR, valid_BR, group_B, eps, min_valid, ddof: as in `standardize`.
        weights_BR: weight of each reward for each sample's data set; 0 leaves it out, a negative one turns it round.
        std_floor_R: least divisor per reward (`RunningSpread.floor`).
        reduce: sums over all ranks; None is a single rank.
    """
    mixed_B, counts_B = _mixed(
        scores_BR, valid_BR, group_B, weights_BR, eps=eps, min_valid=min_valid, std_floor_R=std_floor_R, ddof=ddof
    )
    adv_B = whiten(mixed_B, counts_B, eps=eps, ddof=ddof, reduce=reduce)
    return _as_pair(adv_B, counts_B, scores_BR)


def gdpo_within_groups(
    scores_BR: Tensor,
    valid_BR: Tensor,
    group_B: Tensor,
    weights_BR: Tensor,
    *,
    eps: float = 1e-4,
    min_valid: int = 2,
    std_floor_R: Tensor | None = None,
    reduce: Reduce | None = None,
) -> tuple[Tensor, Tensor]:
    """GDPO before the batch is whitened: `gdpo` is this times one number.

    A group's z-scores of a reward add up to 0, so the mean over the batch is 0 and 1 / (std + eps) is all that whitening does.
    """
    mixed_B, counts_B = _mixed(
        scores_BR, valid_BR, group_B, weights_BR, eps=eps, min_valid=min_valid, std_floor_R=std_floor_R, ddof=1
    )
    return _as_pair(mixed_B, counts_B, scores_BR)


def _mixed(
    scores_BR: Tensor,
    valid_BR: Tensor,
    group_B: Tensor,
    weights_BR: Tensor,
    *,
    eps: float,
    min_valid: int,
    std_floor_R: Tensor | None,
    ddof: int,
) -> tuple[Tensor, Tensor]:
    """sum_r w_r z_r of every sample, and which samples count."""
    weights_BR = check_weights(weights_BR, scores_BR)
    z_BR = standardize(
        scores_BR, valid_BR, group_B, eps=eps, min_valid=min_valid, std_floor=std_floor_R, ddof=ddof
    ).z_BR
    counts_B = (valid_BR.to("cpu", torch.bool) & (weights_BR != 0)).any(dim=1)
    return (weights_BR * z_BR).sum(dim=1), counts_B


def grpo(
    scores_B: Tensor,
    valid_B: Tensor,
    group_B: Tensor,
    *,
    eps: float = 1e-4,
    min_valid: int = 2,
    std_floor_B: Tensor | None = None,
    ddof: int = 1,
) -> tuple[Tensor, Tensor]:
    """GRPO (arXiv 2402.03300) section 4.1.2: (score - group mean) / (group std + eps). Arguments as in `standardize`."""
    floor = None if std_floor_B is None else std_floor_B[:, None]
    relative = standardize(
        scores_B[:, None], valid_B[:, None], group_B, eps=eps, min_valid=min_valid, std_floor=floor, ddof=ddof
    )
    return _as_pair(relative.z_BR[:, 0], valid_B, scores_B)


def grpo_global_std(
    scores_B: Tensor,
    valid_B: Tensor,
    group_B: Tensor,
    *,
    eps: float = 1e-4,
    min_valid: int = 2,
    std_floor_B: Tensor | None = None,
    reduce: Reduce | None = None,
    ddof: int = 1,
) -> tuple[Tensor, Tensor]:
    """GRPO with Flow-GRPO's global std: (score - group mean) / (std over all ranks' valid scores + eps)."""
    relative = standardize(scores_B[:, None], valid_B[:, None], group_B, min_valid=min_valid, ddof=ddof)
    std = moments(scores_B, valid_B, reduce, ddof).std
    return _as_pair(relative.centred_BR[:, 0] / divisor(std, std_floor_B, eps), valid_B, scores_B)


def dr_grpo(scores_B: Tensor, valid_B: Tensor, group_B: Tensor, *, min_valid: int = 2) -> tuple[Tensor, Tensor]:
    """Dr. GRPO (arXiv 2503.20783) section 3.2: score - group mean; a std would lift groups that are too easy or too hard.

    >>> scores_B, group_B = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 0, 0])
    >>> dr_grpo(scores_B, torch.ones(3, dtype=torch.bool), group_B)[0].tolist()
    [-2.0, -1.0, 3.0]
    """
    relative = standardize(scores_B[:, None], valid_B[:, None], group_B, min_valid=min_valid)
    return _as_pair(relative.centred_BR[:, 0], valid_B, scores_B)


def reinforce_pp(
    scores_B: Tensor,
    valid_B: Tensor,
    group_B: Tensor,
    *,
    eps: float = 1e-4,
    min_valid: int = 2,
    std_floor_B: Tensor | None = None,
    reduce: Reduce | None = None,
    ddof: int = 1,
) -> tuple[Tensor, Tensor]:
    """REINFORCE++ (arXiv 2501.03262): (score - mean) / (std + eps) over all ranks' valid scores; groups play no part.

    `min_valid` is asked of the whole batch.
    """
    check_scores(scores_B[:, None], valid_B[:, None], group_B)
    adv_B = whiten(scores_B, valid_B, eps=eps, ddof=ddof, reduce=reduce, min_valid=min_valid, std_floor_B=std_floor_B)
    return _as_pair(adv_B, valid_B, scores_B)


def pair_weight(similarity_B: Tensor, mode: Literal["sqrt", "linear", "none"] = "sqrt") -> Tensor:
    """Factor on the advantages of both groups of a pair, (B,) float32, by the pair's similarity in [0, 1].

    PairUni's Pair-GRPO: the square root of the similarity; an aligned pair (similarity 1) keeps its advantage.
    """
    if not ((similarity_B >= 0) & (similarity_B <= 1)).all():
        raise ValueError(f"similarity must lie in [0, 1], found {similarity_B.min():g} to {similarity_B.max():g}")
    similarity_B = similarity_B.float()
    if mode == "sqrt":
        return similarity_B.sqrt()
    if mode == "linear":
        return similarity_B
    if mode == "none":
        return torch.ones_like(similarity_B)
    raise ValueError(f"mode = {mode!r}: must be sqrt, linear or none")


def without_flat_groups(adv_B: Tensor, weight_B: Tensor, group_B: Tensor) -> Tensor:
    """weight_B with 0 for the samples of groups whose advantages are all 0; the others keep theirs.

    Such a group has no policy term, but its KL to the reference trains, and the count that both terms are divided by includes
    it. With a share f of flat groups the policy term is (1 - f) of what it is without them, at an unchanged KL. Without
    them, both are means over the same samples, whatever f is; flow_grpo's later code drops these samples, too.
    """
    _, of_B = torch.unique(group_B.to(adv_B.device), return_inverse=True)
    told_apart_B = (adv_B != 0) & (weight_B != 0)  # what lies under a weight of 0 tells nothing
    told_apart_G = torch.zeros(len(group_B), dtype=torch.bool, device=adv_B.device)
    told_apart_G[of_B[told_apart_B]] = True
    return torch.where(told_apart_G[of_B], weight_B, 0.0)


class Estimator(Protocol):
    """How the trainer calls every estimator; those of a single score first add up the weighted rewards."""

    def __call__(
        self,
        scores_BR: Tensor,
        valid_BR: Tensor,
        group_B: Tensor,
        weights_BR: Tensor,
        *,
        eps: float = 1e-4,
        min_valid: int = 2,
        std_floor_R: Tensor | None = None,
        reduce: Reduce | None = None,
    ) -> tuple[Tensor, Tensor]: ...


def of_sum(estimator: Callable[..., tuple[Tensor, Tensor]], *, across_groups: bool, takes: frozenset[str]) -> Estimator:
    """Call an estimator of one score like `gdpo`, on the weighted sum of the rewards."""

    def estimate(
        scores_BR: Tensor,
        valid_BR: Tensor,
        group_B: Tensor,
        weights_BR: Tensor,
        *,
        eps: float = 1e-4,
        min_valid: int = 2,
        std_floor_R: Tensor | None = None,
        reduce: Reduce | None = None,
    ) -> tuple[Tensor, Tensor]:
        if std_floor_R is not None and "std_floor_B" not in takes:
            raise ValueError(f"{estimator.__name__} divides by no std, so a std floor cannot act: leave it out")
        total = add_up(scores_BR, valid_BR, group_B, weights_BR, across_groups=across_groups, std_floor_R=std_floor_R)
        options = {"eps": eps, "min_valid": min_valid, "std_floor_B": total.std_floor_B, "reduce": reduce}
        return estimator(total.score_B, total.valid_B, group_B, **{name: options[name] for name in takes})

    return estimate


class Total(NamedTuple):
    """The weighted sum of a sample's rewards: float64 scores, where they are comparable, and the floor of their std."""

    score_B: Tensor
    valid_B: Tensor
    std_floor_B: Tensor | None


def add_up(
    scores_BR: Tensor,
    valid_BR: Tensor,
    group_B: Tensor,
    weights_BR: Tensor,
    *,
    across_groups: bool = False,
    std_floor_R: Tensor | None = None,
) -> Total:
    """Sum w_r s_r for estimators of a single score, valid only where the sums can be compared.

    A sample that lacks a reward its neighbours have would be judged by a shorter sum, so it is masked. A reward that no
    sample of the group has is left out of the whole group's sums, unless sums are compared `across_groups`: then it
    masks the group. The floors of the rewards add up like independent errors, sqrt(sum (w_r floor_r)^2).
    """
    scores_BR, valid_BR = check_scores(scores_BR, valid_BR, group_B)
    weights_BR = check_weights(weights_BR, scores_BR)
    needed_BR = weights_BR != 0
    if not across_groups:
        for rows_GN in alike(group_B):
            needed_BR[rows_GN] &= valid_BR[rows_GN].any(dim=1, keepdim=True)
    valid_B = needed_BR.any(dim=1) & (valid_BR | ~needed_BR).all(dim=1)
    score_B = torch.where(needed_BR, weights_BR * scores_BR, 0.0).sum(dim=1)
    floor_B = None
    if std_floor_R is not None:
        floor_B = torch.where(needed_BR, weights_BR * std_floor_R.to("cpu", torch.float64), 0.0).norm(dim=1)
    return Total(score_B, valid_B, floor_B)


def _as_pair(adv_B: Tensor, counts_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    counts_B = counts_B.to(like.device, torch.bool)
    return torch.where(counts_B, adv_B.to(like.device), 0.0).float(), counts_B.float()


# The estimators by the name that the configuration gives.
ESTIMATORS: dict[str, Estimator] = {
    "gdpo": gdpo,
    "grpo": of_sum(grpo, across_groups=False, takes=frozenset({"eps", "min_valid", "std_floor_B"})),
    "grpo_global_std": of_sum(
        grpo_global_std, across_groups=True, takes=frozenset({"eps", "min_valid", "std_floor_B", "reduce"})
    ),
    "dr_grpo": of_sum(dr_grpo, across_groups=False, takes=frozenset({"min_valid"})),
    "reinforce_pp": of_sum(
        reinforce_pp, across_groups=True, takes=frozenset({"eps", "min_valid", "std_floor_B", "reduce"})
    ),
}

# Estimators whose advantages follow from each group alone, up to one factor of the whole batch: 1 for all but those of `SCALED`.
WITHIN_GROUPS: dict[str, Estimator] = {
    "gdpo": gdpo_within_groups,
    "grpo": ESTIMATORS["grpo"],
    "grpo_global_std": of_sum(
        dr_grpo, across_groups=True, takes=frozenset({"min_valid"})
    ),  # the batch's std is the factor
    "dr_grpo": ESTIMATORS["dr_grpo"],
}
SCALED = frozenset({"gdpo", "grpo_global_std"})
