"""Losses as pure functions of tensors, computed in float32.

A loss of this package is a sum; the caller divides it by a count over all ranks and micro-batches, so that neither the number of
ranks nor the split into micro-batches changes the optimizer's step. It is put together from weights (`weights`: how much each
term counts, and what the sum is divided by), ratios of probabilities (`ratios`) and what becomes of an advantage and a ratio
(`clips`). `surrogate` and `forward` do so for the steps of a flow, `policy` and `preference` for the tokens of a text;
`policy_loss` and `preference_loss` also divide, for one process with one batch.
"""

from trainer.losses.forward import diffuse, dpo_loss, matching_error, matching_logp, nft_loss, velocity_distance
from trainer.losses.policy import PolicyKind, PolicyTerms, policy_loss, policy_terms
from trainer.losses.preference import (
    OF_STEP,
    PairRatios,
    PreferenceKind,
    chosen_nll,
    others_of,
    pair_ratios,
    pair_terms,
    preference_loss,
    preference_terms,
)
from trainer.losses.surrogate import clipped_surrogate, guarded_surrogate, kl_penalty
from trainer.losses.terms import Stats, highest
from trainer.losses.weights import Reduction, Weights, reduced, weigh

__all__ = [
    "OF_STEP",
    "PairRatios",
    "PolicyKind",
    "PolicyTerms",
    "PreferenceKind",
    "Reduction",
    "Stats",
    "Weights",
    "chosen_nll",
    "clipped_surrogate",
    "diffuse",
    "dpo_loss",
    "guarded_surrogate",
    "highest",
    "kl_penalty",
    "matching_error",
    "matching_logp",
    "nft_loss",
    "others_of",
    "pair_ratios",
    "pair_terms",
    "policy_loss",
    "policy_terms",
    "preference_loss",
    "preference_terms",
    "reduced",
    "velocity_distance",
    "weigh",
]
