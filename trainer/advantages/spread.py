"""How far apart each reward puts the samples: a running measure for the std floor, and sums for the metrics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainer.advantages.statistics import Reduce, Standardized, moments


class RunningSpread:
    """Each reward's std over all valid scores of all ranks, averaged over the recent steps.

    A reward that saturates has groups of tiny std, which normalisation would blow up to full weight. Its running spread
    is in its own units, so a share of it is a floor that fits every reward. A step's floor is of the steps before it, so it is
    known before the first score comes (docs/decisions/0150).
    """

    def __init__(self, num_rewards: int, *, decay: float = 0.9) -> None:
        """`decay` in [0, 1) is what a step leaves of the past: 0.9 remembers about ten steps."""
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay:g}: needs a number in [0, 1)")
        self.decay = decay
        self.std_R = torch.zeros(num_rewards, dtype=torch.float64)
        self.seen_R = torch.zeros(num_rewards, dtype=torch.bool)

    def after(self, scores_BR: Tensor, valid_BR: Tensor, reduce: Reduce | None = None) -> RunningSpread:
        """The spread with one more step. The first with two valid scores of a reward sets its spread; fewer leave it as
        it is. Self stays: a step that stops half-way has not been."""
        if scores_BR.shape[1] != len(self.std_R):
            raise ValueError(f"{scores_BR.shape[1]} rewards, but the spread of {len(self.std_R)} is kept")
        spread = RunningSpread(len(self.std_R), decay=self.decay)
        spread.load_state_dict(self.state_dict())
        recent = moments(scores_BR, valid_BR, reduce, ddof=1)
        measured_R = recent.num >= 2
        # The first spread stands for all the past, so that the average does not have to climb from 0.
        past_R = torch.where(self.seen_R, self.std_R, recent.std)
        spread.std_R = torch.where(measured_R, self.decay * past_R + (1 - self.decay) * recent.std, self.std_R)
        spread.seen_R = self.seen_R | measured_R
        return spread

    def forget(self, reward: int) -> None:
        """The next step sets this reward's spread anew: it is measured in another unit from now on."""
        self.seen_R[reward] = False

    def known(self) -> Tensor:
        """Bool (R,): which rewards have a spread, and so a floor for the next step whatever its scores are."""
        return self.seen_R & (self.std_R > 0)

    def floor(self, fraction: float, first: RunningSpread) -> Tensor:
        """std_floor_R of a step: `fraction` of the running spread before it, float64 (R,).

        Args:
            first: the spread `after` the step, for rewards that had none before: those of a first step, and those that told
                nobody apart so far. 0 for a reward that has none by then.
        """
        return fraction * torch.where(self.known(), self.std_R, first.std_R)

    def state_dict(self) -> dict[str, Tensor]:
        return {"std_R": self.std_R.clone(), "seen_R": self.seen_R.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError when the state is of another number of rewards."""
        if state["std_R"].shape != self.std_R.shape:
            raise ValueError(f"the saved spread is of {len(state['std_R'])} rewards, this run has {len(self.std_R)}")
        self.std_R = state["std_R"].to("cpu", torch.float64).clone()
        self.seen_R = state["seen_R"].to("cpu", torch.bool).clone()


class SignalSums(NamedTuple):
    """What each reward tells this rank's samples apart by; float64 (R,) sums, to be added over ranks.

    abs_z / samples is the mean size of a reward's normalised score; flat_groups / groups is the share of groups in
    which it told nobody apart. Groups with fewer than `min_valid` valid scores are not counted.
    """

    abs_z_R: Tensor
    samples_R: Tensor
    groups_R: Tensor
    flat_groups_R: Tensor


def signal_sums(relative: Standardized, group_B: Tensor) -> SignalSums:
    """Summarise `standardize` for the metrics."""
    groups, of_B = torch.unique(group_B.cpu(), return_inverse=True)
    shape_GR = (len(groups), relative.z_BR.shape[1])
    of_BR = of_B[:, None].expand_as(relative.z_BR)

    def count_groups(mask_BR: Tensor) -> Tensor:
        hits_GR = torch.zeros(shape_GR, dtype=torch.float64).scatter_add_(0, of_BR, mask_BR.double())
        return (hits_GR > 0).double().sum(dim=0)

    groups_R = count_groups(relative.enough_BR)
    flat_R = groups_R - count_groups(relative.told_apart_BR)
    return SignalSums(relative.z_BR.abs().sum(dim=0), relative.enough_BR.double().sum(dim=0), groups_R, flat_R)
