"""What a flow keeps of a micro-batch for its replay. Axes: B samples, S trained steps, T kept points of the path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from torch import Tensor

from trainer.policies.base import SamplingPlan
from trainer.types import Rollout


@dataclass(frozen=True, eq=False)
class FlowTrace:
    """Implements `trainer.types.Trace` for a flow: what a replay of the trained steps needs. Tensors are batch-first.

    Attributes:
        plan: what the samples were drawn with; `plan.trained_steps` are the S columns of the rollout.
        x_BT: latents before and after each trained step, a shared point once (`kept_points`); None without such steps.
        mean_BS: mean of each trained step; None unless `plan.keep_means`.
        x0: the clean latents; None unless `plan.keep_final`.
    """

    plan: SamplingPlan
    x_BT: Tensor | None = None
    mean_BS: Tensor | None = None
    x0: Tensor | None = None

    def rows(self, rows: slice) -> Self:
        return replace(self, **{name: tensor[rows] for name, tensor in self._tensors().items()})

    def join(self, others: Sequence[Self]) -> Self:
        pieces = [each._tensors() for each in (self, *others)]
        joined: dict[str, Any] = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        return replace(self, **joined)

    def around(self, step: int) -> tuple[Tensor, Tensor]:
        """Latents before and after a trained step."""
        assert self.x_BT is not None, "kept for every trained step"
        points = kept_points(self.plan)
        return self.x_BT[:, points.index(step)], self.x_BT[:, points.index(step + 1)]

    def _tensors(self) -> dict[str, Any]:
        """Those that are kept, by name."""
        named = {"x_BT": self.x_BT, "mean_BS": self.mean_BS, "x0": self.x0}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def trace_of(rollout: Rollout) -> FlowTrace:
    """The rollout's trace, which a flow made."""
    return cast(FlowTrace, rollout.trace)


def kept_points(plan: SamplingPlan) -> list[int]:
    """Indices of the noise levels whose latents a replay needs: before and after each trained step, shared ones once."""
    return sorted({at for step in plan.trained_steps for at in (step, step + 1)})
