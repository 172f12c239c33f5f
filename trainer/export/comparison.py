"""Whether what was written, read back as its users read it, is what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.config import Config
from trainer.config.base import UserError
from trainer.data.datasets import load_datasets, sampled
from trainer.policies.lora import merged_state
from trainer.policies.registry import entry_of
from trainer.types import Prompt, Sample

_DRAWN = 2
_ASKED = "what is this"  # where a run has no prompts
_ROUNDING = 1  # of 255: adapters are summed in another order by other programs


class ExportError(UserError, RuntimeError):
    """What was written is not what was trained."""


@torch.no_grad()
def settle(model: Any, dtype: torch.dtype, *, merge: bool) -> None:
    """Give the network the numbers that are written: adapters merged where the format has none, then rounded to `dtype`.

    What is compared later is then equal, not near.

    Raises:
        ExportError: a number is too large for `dtype`.
    """
    network = model.network
    if merge and hasattr(network, "merge_and_unload"):
        model.network = network = network.float().merge_and_unload()
    kept = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    for name, tensor in network.state_dict().items():
        if merge or name in kept:
            rounded = tensor.to(dtype)
            if not bool(rounded.isfinite().all()) and bool(tensor.isfinite().all()):
                raise ExportError(
                    f"{name} holds {float(tensor.abs().max()):g}, more than the {torch.finfo(dtype).max:g} that "
                    f"{str(dtype).removeprefix('torch.')} can hold: export with --dtype bfloat16 or float32"
                )
            tensor.copy_(rounded)


@torch.no_grad()
def compare_weights(model: Any, reloaded: Any, *, adapters: bool, dtype: torch.dtype) -> str:
    """Compare every tensor of the network. Returns a sentence.

    Args:
        adapters: only adapters were written. What each adds to its weight is compared by itself, because beside the
            weight an early one is less than the type's rounding; then they are merged on both sides.

    Raises:
        ExportError: a tensor is missing or differs.
    """
    allowed = _compare_adapters(model.network, reloaded.network, dtype) if adapters else {}
    expected, found = merged_state(model.network), _plain_state(reloaded.network)
    if expected.keys() != found.keys():
        different = sorted(expected.keys() ^ found.keys())
        raise ExportError(f"the export is not whole: {len(different)} tensors differ, the first is {different[0]!r}")
    largest = 0.0
    for name, tensor in expected.items():
        difference = (tensor.float() - found[name].float()).abs()
        largest = max(largest, float(difference.max()))
        if not bool((difference <= _allowed(tensor, allowed.get(name))).all()):
            raise ExportError(
                f"the export is not what was trained: {name} differs by up to {float(difference.max()):g}"
            )
    return f"{len(expected)} tensors, the largest difference is {largest:g}"


def _allowed(merged: Tensor, of_adapter: Tensor | None) -> Tensor | float:
    """How far a merged weight may be off: as far as its adapter, and by the rounding of the sum; without one not at all."""
    if of_adapter is None:
        return 0.0
    return of_adapter + torch.finfo(torch.float32).eps * (merged.float().abs() + of_adapter)


def _compare_adapters(network: nn.Module, reloaded: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """What B A adds may differ by the rounding of each element of B, which was written with its scale.

    Numbers below the type's smallest normal one are rounded to multiples of its smallest, in float16 2^-24.

    Returns what was allowed, by the name of the weight.
    """
    expected, found = _adapters(network), _adapters(reloaded)
    if expected.keys() != found.keys():
        different = sorted(expected.keys() ^ found.keys())
        raise ExportError(f"the export is not whole: {len(different)} adapters differ, the first is {different[0]!r}")
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal * limits.eps
    allowed = {}
    for name, (a, b, scale) in expected.items():
        other_a, other_b, other_scale = found[name]
        difference = (scale * (b @ a) - other_scale * (other_b @ other_a)).abs()
        rounding = limits.eps + len(a) * torch.finfo(torch.float32).eps
        bound = rounding * abs(scale) * (b.abs() @ a.abs()) + smallest * a.abs().sum(0)
        if not bool((difference <= bound).all()):
            raise ExportError(
                f"the export is not what was trained: the adapter of {name} adds up to {float(difference.max()):g} more or "
                "less to its weights"
            )
        allowed[f"{name}.weight"] = bound + rounding * abs(scale) * (b.abs() @ a.abs())
    return allowed


def _adapters(network: nn.Module) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and the scale of every adapter in a network, by the name of its layer."""
    found = {}
    for name, module in network.named_modules():
        if hasattr(module, "get_delta_weight"):
            layer: Any = module
            key = layer.active_adapters[0]
            a, b = layer.lora_A[key].weight.float(), layer.lora_B[key].weight.float()
            found[name.removeprefix("base_model.model.")] = a, b, float(layer.scaling[key])
    return found


def _plain_state(network: Any) -> dict[str, Tensor]:
    """The state of a network that PEFT or diffusers may have put adapters into, merged."""
    if getattr(network, "peft_config", None) is None or not hasattr(network, "fuse_lora"):
        return merged_state(network)
    network.float().fuse_lora()
    network.unload_lora()
    state: dict[str, Tensor] = network.state_dict()
    return state


def compare_samples(config: Config, model: Any, reloaded: Any) -> str:
    """Draw samples for the first training prompts with both, for a question of ours where there are none. Returns a sentence.

    Raises:
        ExportError: they differ.
    """
    prompts = sampled(load_datasets(config))[:_DRAWN]
    if not prompts:  # a run on given texts or images
        prompts = [Prompt("export", _ASKED)]
    drawn: list[list[Sample]] = []
    family = entry_of(config.policy).family
    plan = family.comparison_plan(len(prompts))
    for each in (model, reloaded):
        policy = family.policy(each, keep_reference=False)
        rollouts = policy.sample(prompts, 1, list(range(len(prompts))), plan)
        drawn.append([sample for rollout in rollouts for sample in rollout.samples])
    return _compare_texts(*drawn) if drawn[0][0].text is not None else _compare_images(*drawn)


def _compare_texts(before: Sequence[Sample], after: Sequence[Sample]) -> str:
    for one, other in zip(before, after, strict=True):
        if one.tokens != other.tokens:
            raise ExportError(f"the export writes other texts: {one.text!r} became {other.text!r}")
    count = sum(len(sample.tokens) for sample in before)
    return f"{len(before)} texts written twice, all {count} tokens are the same"


def _compare_images(before: Sequence[Sample], after: Sequence[Sample]) -> str:
    first, second = (np.stack([image for sample in each for image in sample.images]) for each in (before, after))
    largest = int(np.abs(first.astype(np.int16) - second.astype(np.int16)).max())
    if largest > _ROUNDING:
        raise ExportError(f"the export draws other images: pixels differ by up to {largest} of 255")
    return f"{len(before)} drawn twice, pixels differ by at most {largest} of 255"
