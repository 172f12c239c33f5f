"""What turns losses into optimizer steps, on one process or many. It hides how parameters and gradients are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


class Engine(Protocol):
    """Owns the optimizer of a policy's trainable parameters. All ranks make the same calls in the same order."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the trained parameters, in an order that is the same on all ranks."""
        ...

    def zero_grad(self) -> None:
        """Forget accumulated gradients; called before the first backward of a step."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of `loss`: this rank's share of the global loss, which is the *sum* over the ranks.

        Args:
            last: no other backward comes before `step`.
        """
        ...

    def step(self, lr: float, *, scale: float = 1.0) -> float:
        """Sum the gradients over the ranks, multiply them by `scale`, clip their global norm, take one optimizer step.

        A parameter that no rank has had a gradient for in any step is left alone, weight decay included. From its first
        gradient on, a step without one counts as a gradient of 0 (docs/decisions/0058).

        Args:
            lr: rate of the parameters without a rate of their own; the others' are scaled in proportion.
            scale: at least 0, the same on all ranks; of losses whose common factor was not known yet when they were computed.

        Returns:
            The norm after `scale` and before clipping. Where it is not finite on one rank, it is on none, and no rank took a step.
        """
        ...

    def numel(self, name: str) -> int:
        """Elements of the whole parameter, whatever the sharding."""
        ...

    def read(self, name: str, *, keep: bool = True) -> dict[str, Tensor]:
        """Whole float32 copies on the CPU, whatever the sharding: `weight`, and once stepped AdamW's `exp_avg`,
        `exp_avg_sq` and `step` (0-d) or Muon's `momentum_buffer`. All ranks take part; one that does not `keep` them copies nothing and gets none."""
        ...

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `read` gave, on this or another number of ranks. Raises ValueError when shapes or the
        optimizer differ."""
        ...


@runtime_checkable
class KeepsApart(Protocol):
    """An engine that can add up a second gradient beside the first, of losses that lack the factor which the first one waits for.

    It costs as much memory again as the gradient, until `join`.
    """

    def backward_apart(self, loss: Tensor, *, again: bool) -> None:
        """Accumulate the gradient of `loss` in the second one; the ranks' sums are taken after `join`.

        Args:
            again: another backward pass through the same graph follows.
        """
        ...

    def join(self, scale: float) -> None:
        """Multiply the first gradient by `scale` and add the second to it, which is forgotten. It comes before the last backward."""
        ...
