"""Where a network is while its policy is built: on its device, or on the host where an engine will cut it into parts.

ZeRO-3 cuts each parameter into one part a rank. A network that is whole on every device before that needs the memory that the cut
saves, so it waits on the host, in the type of its files: read by mapping them, it takes no memory of its own there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

_WAITS: ContextVar[bool] = ContextVar("waits", default=False)
# What autocast computes with weights in its own type, whatever type they are held in.
_CAST_ANYWAY = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def waiting(waits: bool = True) -> Iterator[None]:
    """Inside the block networks that are trained wait on the host for their engine, or, with `waits` false, do not."""
    token = _WAITS.set(waits)
    try:
        yield
    finally:
        _WAITS.reset(token)


def waits() -> bool:
    """Whether networks that are trained wait."""
    return _WAITS.get()


def place(network: nn.Module, device: torch.device) -> None:
    """Move a network to its device, unless it waits on the host."""
    if not _WAITS.get():
        network.to(device)


def hold_as(network: nn.Module, dtype: torch.dtype) -> None:
    """Say the type of weights that wait in another one; whoever cuts them makes them so (`trainer/engine/zero.py`)."""
    for parameter in network.parameters():
        parameter.held_as = dtype  # type: ignore[attr-defined]


def twin(network: nn.Module, *, bfloat16: bool) -> nn.Module:
    """A copy of a network that is never trained; of one that waits, on the same memory, since both are cut into parts of their own.

    Args:
        bfloat16: the network computes under autocast: weights that this casts for every use are held in bfloat16, at half the memory and
            with the same results.
    """
    shared: dict[int, object] = {}
    if _WAITS.get():
        for parameter in network.parameters():
            shared[id(parameter)] = same = nn.Parameter(parameter.data, requires_grad=False)
            same.held_as = _held(parameter)  # type: ignore[attr-defined]
    found = copy.deepcopy(network, shared).requires_grad_(False)
    for parameter in _cast_anyway(found) if bfloat16 else []:
        if _WAITS.get():
            parameter.held_as = torch.bfloat16  # type: ignore[attr-defined]
        else:
            parameter.data = parameter.data.to(torch.bfloat16)
    return found


def _held(parameter: nn.Parameter) -> torch.dtype:
    found: torch.dtype = getattr(parameter, "held_as", parameter.dtype)
    return found


def _cast_anyway(network: nn.Module) -> list[nn.Parameter]:
    """Weights of linear and convolutional layers that no module of another kind uses, too, as an embedding may."""
    others = {
        id(p)
        for module in network.modules()
        if type(module) not in _CAST_ANYWAY
        for p in module.parameters(recurse=False)
    }
    own = (p for module in network.modules() if type(module) in _CAST_ANYWAY for p in module.parameters(recurse=False))
    return [parameter for parameter in dict.fromkeys(own) if id(parameter) not in others]
