"""What objectives on replayed log-probabilities share: which policy a ratio is to, and what counts. Axes: B samples, S columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from machine.transfers import sent
from trainer.losses import highest
from trainer.objectives.base import Once, RolloutBatch
from trainer.policies.base import Replays
from trainer.types import Replay


@dataclass(frozen=True)
class Replayed:
    """One part of a micro-batch, computed again; everything is on the device of the loss.

    Attributes:
        replay: under the present weights.
        columns: which columns of the rollout these are.
        old_BS: log-probabilities before the first update on these samples, to which a ratio is taken.
        behaviour_BS: those of the older weights, or of the other engine, that drew the samples; None where these are the old ones.
        mask_BS: bool, False where a column does not count; None where all do.
        error: the largest difference of the first replay from what was sampled, 0 in later ones; None where older weights
            drew the samples: there they differ by right.
    """

    replay: Replay
    columns: slice
    old_BS: Tensor
    behaviour_BS: Tensor | None
    mask_BS: Tensor | None
    error: Tensor | None


class ReplayedObjective:
    """Micro-batches of samples, cut into the parts that the policy replays in one pass."""

    requires: ClassVar[type] = Replays
    leads: ClassVar[Sequence[str]] = ("terms",)
    # c times the advantages is c times every term but those that say otherwise, for any c >= 0.
    scales: ClassVar[bool] = True

    def __init__(self, policy: Replays, micro_batch_size: int | None) -> None:
        self.policy, self.micro_batch_size = policy, micro_batch_size
        self._once = Once()

    def num_parts(self, batch: RolloutBatch) -> int:
        return len(self.policy.parts(batch.rollout))

    def replayed(self, batch: RolloutBatch, part: int, *, reference: bool) -> Replayed:
        """Replay a part. The first time, `batch.old` takes what later ratios are to.

        Where the samples come from older weights (`behind` in the rollout) or another engine (`version`), the first replay is
        the proximal policy, so that ratios still begin at 1, and `behaviour_BS` is there for an importance weight.
        """
        rollout, columns = batch.rollout, self.policy.parts(batch.rollout)[part]
        replay = self.policy.replay(rollout, columns, reference=reference)
        replayed_BS = replay.logp_BS.detach()
        sampled_BS = sent(rollout.logp_BS[:, columns], replayed_BS.device)
        mask_BS = None if rollout.mask_BS is None else sent(rollout.mask_BS[:, columns], replayed_BS.device)
        first, is_behind = part not in batch.old, rollout.behind > 0
        differs = is_behind or rollout.version is not None
        if first:
            # A resized micro-batch may differ from the sampled ones in the last bits, and so may compiled blocks; the first
            # replay, which precedes every update, is then the old log-probability, so that the first ratio is exactly 1 either
            # way, and a narrow clip range does not clip what is rounding alone.
            # Where the recipe asks for the ratio to what was drawn (`sampled_is_old`), it begins near 1 only.
            is_replayed = differs or ((rollout.resized or rollout.rounds_apart) and not rollout.sampled_is_old)
            batch.old[part] = replayed_BS if is_replayed else sampled_BS
        behaviour_BS = sampled_BS if differs else None
        if is_behind:
            return Replayed(replay, columns, batch.old[part], behaviour_BS, mask_BS, None)
        error_BS = (replayed_BS - sampled_BS).abs() if first else torch.zeros_like(sampled_BS)
        inside_BS = torch.ones_like(error_BS, dtype=torch.bool) if mask_BS is None else mask_BS
        return Replayed(replay, columns, batch.old[part], behaviour_BS, mask_BS, highest(error_BS, inside_BS))
