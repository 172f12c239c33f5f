"""Muon (Jordan 2024) for many small matrices: those of one shape are made orthogonal together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# Elements of the matrices that are taken together. Small ones gain from it; large ones fill a device one by one, and would need
# several times their memory.
_TOGETHER = 1 << 22


class Muon(torch.optim.Muon):
    """torch's optimizer with its arithmetic and its state, in few large products in place of many small ones.

    A step: m <- momentum * m + (1 - momentum) * g; the update momentum * m + (1 - momentum) * g (Nesterov) is made about orthogonal by
    Newton and Schulz' iteration in bfloat16, and scaled by sqrt(max(1, rows / columns)).
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # nobody here gives a closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, alike in by_shape.items():
                for some in _cut(alike, max(1, _TOGETHER // shape.numel())):
                    self._move(some, group)

    def _move(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Move matrices of one shape."""
        momentum, rate = group["momentum"], group["lr"]
        updates = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None, "chosen so"
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            held = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
            updates.append(gradient.lerp(held, momentum) if group["nesterov"] else held)
        rows, columns = parameters[0].shape
        stacked = torch.stack(updates).bfloat16()
        wide = orthogonal(
            stacked.mT if rows > columns else stacked, group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        scale = rate * math.sqrt(max(1, rows / columns))
        for parameter, update in zip(parameters, wide.mT if rows > columns else wide, strict=True):
            parameter.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-scale)


def orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Matrices (B, M, N), M <= N, whose singular values are brought near 1: x <- a x + (b A + c A A) x with A = x x^T, from norm 1."""
    a, b, c = coefficients
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _cut(parameters: Sequence[Tensor], size: int) -> Iterator[Sequence[Tensor]]:
    for first in range(0, len(parameters), size):
        yield parameters[first : first + size]
