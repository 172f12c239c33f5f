"""The weights of a module as whole tensors, whatever the sharding."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn


def whole_weights(module: nn.Module, *, trained_only: bool, keep: bool) -> dict[str, Tensor]:
    """What the module computes with now, the average included while evaluation holds it, by name.

    All ranks take part; one that does not `keep` them gets none. Tensors that are whole anyway are not copied.

    Args:
        trained_only: parameters with `requires_grad` alone.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if trained_only and not parameter.requires_grad:
            continue
        is_cut = hasattr(parameter, "ds_tensor")
        with _gathered(parameter):
            if keep:
                found[name] = parameter.detach().to("cpu", copy=is_cut)
    return found


def _gathered(parameter: nn.Parameter) -> AbstractContextManager[object]:
    """ZeRO-3 cuts parameters into one part a rank; inside it is whole."""
    if not hasattr(parameter, "ds_tensor"):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[object] = deepspeed.zero.GatheredParameters([parameter])
    return gathered
