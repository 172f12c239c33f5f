"""From scores to advantages: group-relative estimators that know which scores are missing.

`ESTIMATORS` maps the names of the configuration to functions of one calling form, `Estimator`.
"""

from trainer.advantages.estimators import (
    ESTIMATORS,
    SCALED,
    WITHIN_GROUPS,
    Estimator,
    Total,
    add_up,
    dr_grpo,
    gdpo,
    grpo,
    grpo_global_std,
    pair_weight,
    reinforce_pp,
    without_flat_groups,
)
from trainer.advantages.spread import RunningSpread, SignalSums, signal_sums
from trainer.advantages.statistics import Reduce, Standardized, standardize

__all__ = [
    "ESTIMATORS",
    "SCALED",
    "WITHIN_GROUPS",
    "Estimator",
    "Reduce",
    "RunningSpread",
    "SignalSums",
    "Standardized",
    "Total",
    "add_up",
    "dr_grpo",
    "gdpo",
    "grpo",
    "grpo_global_std",
    "pair_weight",
    "reinforce_pp",
    "signal_sums",
    "standardize",
    "without_flat_groups",
]
