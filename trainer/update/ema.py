"""Exponential moving average of the trained weights; evaluation runs on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.engine.host import to_host


class Ema:
    """shadow <- decay * shadow + (1 - decay) * weights after every step. `decay` 0 follows the weights exactly.

    Under ZeRO-3 a rank averages its own part of every parameter; `shadow` then holds flat parts.
    """

    def __init__(self, module: nn.Module, decay: float, *, kind: str = "average") -> None:
        """After the engine was built: it may have cut the weights into parts.

        Args:
            kind: the name under which a checkpoint keeps this average of a parameter.
        """
        self.module, self.decay, self.kind = module, decay, kind
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shadow = {name: _held(p).detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, decay: float | None = None) -> None:
        """Move towards the weights; `decay` overrides the configured one for this step."""
        decay = self.decay if decay is None else decay
        for name, parameter in self._parameters.items():
            self.shadow[name].lerp_(_held(parameter), 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the averaged weights inside the block, and its own again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            if _is_cut(parameter):
                parameter.partition()  # type: ignore[attr-defined]  # a gathered copy would outlive the change of the part it was made of
                parameter.ds_secondary_tensor = None  # type: ignore[attr-defined]  # and so would a node's second copy (hpZ)
            held = _held(parameter)
            own = held.detach().clone()
            held.copy_(self.shadow[name])
            self.shadow[name].copy_(own)
        if any(_is_cut(parameter) and parameter.is_cuda for parameter in self._parameters.values()):
            # ZeRO-3 gathers parts on a stream of its own, which does not wait for this one.
            torch.cuda.current_stream().synchronize()

    def read(self, name: str, *, keep: bool = True) -> dict[str, Tensor]:
        """`{kind: a whole float32 copy of one average on the CPU}`, empty without `keep`. All ranks call it for the same names
        in the same order."""
        average, parameter = self.shadow[name].detach(), self._parameters[name]
        if _is_cut(parameter):
            shape = _shape(parameter)
            whole = average.new_empty(dist.get_world_size() * average.numel())
            dist.all_gather(list(whole.chunk(dist.get_world_size())), average)
            average = whole[: shape.numel()].view(shape)  # the last parts are padded
        return {self.kind: to_host(average)} if keep else {}

    @torch.no_grad()
    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `read` gave; where a checkpoint has no such average, it begins anew at the weight.

        Raises:
            ValueError: shapes differ.
        """
        average = tensors.get(self.kind, tensors["weight"])
        own, parameter = self.shadow[name], self._parameters[name]
        shape = _shape(parameter)
        if average.shape != shape:
            raise ValueError(
                f"{name}: the saved average has shape {tuple(average.shape)}, the model's is {tuple(shape)}"
            )
        if _is_cut(parameter):
            average = average.flatten()[dist.get_rank() * own.numel() :][: own.numel()]
            own = own[: average.numel()]
        own.copy_(average)


def _is_cut(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 has cut a parameter into one part per rank."""
    return hasattr(parameter, "ds_tensor")


def _held(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a parameter: all of it, or under ZeRO-3 its flat part."""
    part: Tensor = getattr(parameter, "ds_tensor", parameter)
    return part


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of the whole parameter."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
