"""The supervised losses of packs: cross-entropy of texts and squared error of velocities, each a mean over the tokens of all ranks.

Both are sums that the update divides by what all ranks count, so packs of unequal length on several ranks give the loss and the
gradient of one process that has them all. Axes: T learnt text tokens, L noised latent tokens.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

from machine.transfers import sent
from trainer.config.packed import PackedConfig
from trainer.losses import Stats
from trainer.objectives.base import Term
from trainer.policies.base import Laid, PackOutput, ReadsPacks

# The power of n in a token's weight 1 / n^power.
_POWER: dict[Literal["token", "sample", "square"], float] = {"token": 0.0, "square": 0.5, "sample": 1.0}


class FilledPack(Protocol):
    """Rows that fill a sequence (`trainer.data.packing.lanes.Pack`)."""

    @property
    def rows(self) -> Sequence[Any]: ...

    @property
    def keys(self) -> Sequence[tuple[int, int]]:
        """Of each row the number of its group, and its place there."""
        ...

    @property
    def left_out(self) -> Sequence[str]: ...


class Packs(Protocol):
    """Where packs come from (`trainer.data.packing.lanes.Lanes`)."""

    def packs(self) -> Sequence[FilledPack]:
        """This rank's packs of the next step. Raises StopTrainingError where rows cannot be used."""
        ...


@dataclass(frozen=True)
class PackBatch:
    """A pack: one forward pass.

    Attributes:
        rows: laid by the policy.
        groups: the number of each row's group.
        left_out: how many rows were met and could not be used while it was filled.
        weight: of all its tokens.
    """

    rows: Sequence[Laid]
    groups: Sequence[int]
    left_out: int = 0
    weight: float = 1.0
    kind: ClassVar[str] = "packs"
    update: ClassVar[None] = None

    def to(self, device: torch.device) -> Self:
        return self  # the policy moves what it reads

    def weightless(self) -> Self:
        return replace(self, weight=0.0, left_out=0)


class SupervisedPacks:
    """ce_weight * (cross-entropy of the learnt texts) + mse_weight * (squared error of the velocities of noised latents).

    A text token weighs 1 / n^p, n the learnt tokens of its text or its row, p by `loss.reduction`; the cross-entropy is the sum of
    weight * error by the sum of weights. A latent token weighs 1.

    Args:
        groups: names of the groups; beside the losses the plain means of each are shown (`by_group`).

    Attributes:
        left_out: why rows could not be used, in the order in which they were met; whoever tells of them takes them out.
    """

    requires: ClassVar[type] = ReadsPacks

    def __init__(self, policy: ReadsPacks, config: PackedConfig, source: Packs, groups: Sequence[str]) -> None:
        self.policy, self.config, self.source, self.groups = policy, config, source, groups
        self.left_out: list[str] = []

    @property
    def leads(self) -> Sequence[str]:
        """What has a weight: a step that counts none of it leaves the weights alone."""
        loss = self.config.loss
        return [
            name for name, weight in (("text_tokens", loss.ce_weight), ("latent_tokens", loss.mse_weight)) if weight
        ]

    def batches(self, fed: Any, step: int) -> list[PackBatch]:
        """This rank's packs of the step; what is fed is not looked at."""
        packs = self.source.packs()
        for pack in packs:
            self.left_out += pack.left_out
        return [PackBatch(pack.rows, [group for group, _ in pack.keys], len(pack.left_out)) for pack in packs]

    def counts(self, batch: PackBatch) -> dict[str, float]:
        latents = sum(row.drawn for row in batch.rows)
        return {
            "text_tokens": self._weights(batch).double().sum().item(),
            "latent_tokens": batch.weight * latents,
        }

    def num_parts(self, batch: PackBatch) -> int:
        return 1

    def terms(self, batch: PackBatch, part: int) -> tuple[list[Term], Stats]:
        loss = self.config.loss
        out = self.policy.read(batch.rows)
        weight_T = sent(self._weights(batch), out.cross_entropy_T.device)
        self._check(batch, out.cross_entropy_T, out.squared_error_L)
        ce = _differentiable((weight_T * out.cross_entropy_T).sum())
        mse = _differentiable(batch.weight * out.squared_error_L.sum())
        zero = ce.detach()
        totals = {
            "packed/text_tokens": len(weight_T),
            "packed/latent_tokens": len(out.squared_error_L),
            "packed/tokens": sum(row.length for row in batch.rows),
            "packed/rows": len(batch.rows),
            "packed/left_out": batch.left_out,
        }
        counts = float(batch.weight != 0)
        stats = {name: torch.full_like(zero, counts * number) for name, number in totals.items()}
        stats |= {name: counts * value for name, value in self._by_group(batch, out).items()}
        return [
            Term("loss/ce", ce, "text_tokens", coef=loss.ce_weight),
            Term("loss/mse", mse, "latent_tokens", coef=loss.mse_weight),
        ], Stats(torch.zeros_like(zero), totals=stats)

    @torch.no_grad()
    def _by_group(self, batch: PackBatch, out: PackOutput) -> dict[str, Tensor]:
        """Of each group sums of plain errors, how many tokens they are of, and rows, by `group_key`."""
        device = out.cross_entropy_T.device
        group_R = torch.tensor(batch.groups)
        learnt_R = torch.tensor([sum(row.learnt) for row in batch.rows])
        drawn_R = torch.tensor([row.drawn for row in batch.rows])

        def added(values: Tensor, times_R: Tensor) -> Tensor:
            sums_G = torch.zeros(len(self.groups), device=device)
            return sums_G.index_add_(0, sent(group_R.repeat_interleave(times_R), device), values.float())

        once_R = torch.ones_like(group_R)
        sums = {
            "ce": added(out.cross_entropy_T, learnt_R),
            "mse": added(out.squared_error_L, drawn_R),
            "text_tokens": added(sent(learnt_R, device), once_R),
            "latent_tokens": added(sent(drawn_R, device), once_R),
            "rows": added(sent(once_R, device), once_R),
        }
        return {group_key(name, what): sums_G[n] for what, sums_G in sums.items() for n, name in enumerate(self.groups)}

    def _weights(self, batch: PackBatch) -> Tensor:
        """Of each learnt text token, float32 (T,), in the policy's order."""
        by_row, power = self.config.loss.per == "row", _POWER[self.config.loss.reduction]
        weights: list[Tensor] = []
        for row in batch.rows:
            for learnt in row.learnt:
                n = max(sum(row.learnt) if by_row else learnt, 1)
                weights.append(torch.full((learnt,), batch.weight / n**power))
        return torch.cat(weights) if weights else torch.zeros(0)

    def _check(self, batch: PackBatch, cross_entropy_T: Tensor, squared_error_L: Tensor) -> None:
        learnt, drawn = sum(sum(row.learnt) for row in batch.rows), sum(row.drawn for row in batch.rows)
        assert len(cross_entropy_T) == learnt and len(squared_error_L) == drawn, (
            f"{type(self.policy).__name__} laid {learnt} learnt and {drawn} drawn tokens and read {len(cross_entropy_T)} and "
            f"{len(squared_error_L)}"
        )


def group_key(group: str, what: str) -> str:
    """The key of a group's rows; of its sums of errors and of the tokens that these are of, before `by_group` divides them."""
    return f"packed/{group}/{what}"


def by_group(totals: MutableMapping[str, Any], groups: Sequence[str]) -> dict[str, float]:
    """Takes each group's sums out of the totals. Gives the means of those that have any tokens, by `<group>/ce` and `<group>/mse`."""
    found = {}
    for group in groups:
        for error, tokens in (("ce", "text_tokens"), ("mse", "latent_tokens")):
            total, count = totals.pop(group_key(group, error)), totals.pop(group_key(group, tokens))
            if count:
                found[f"{group}/{error}"] = total / count
    return found


def _differentiable(total: Tensor) -> Tensor:
    """The sum of a pack without such a token hangs on no weight; a backward pass needs something to begin with."""
    if total.requires_grad or not torch.is_grad_enabled():
        return total
    return total + torch.zeros_like(total, requires_grad=True)
