"""What autograd keeps of a network on CUDA under autocast to bfloat16, counted on a CPU: on the meta device, where tensors have
shapes and types and no numbers, with CUDA's rules of which operation computes in which type.

The rules are torch's own lists for CUDA (aten/src/ATen/autocast_mode.h), as far as our networks use them; the CPU's are others. Attention
keeps queries, keys, values, what comes out and the logarithms of its sums, as flash attention does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LOW = {functional.linear, torch.matmul, torch.conv2d, functional.conv2d, Tensor.matmul, Tensor.__matmul__}
HIGH = {
    functional.layer_norm,
    functional.rms_norm,
    torch.rms_norm,
    torch.pow,
    Tensor.pow,
    Tensor.__pow__,
    torch.rsqrt,
    Tensor.rsqrt,
    torch.sum,
    Tensor.sum,
    torch.exp,
}
WIDEST = {torch.cat, torch.stack}


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *qkv: Tensor) -> Tensor:
        out = torch.empty_like(qkv[0])
        ctx.save_for_backward(*qkv, out, torch.empty(out.shape[:3], device=out.device))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


class CudaAutocast(TorchFunctionMode):
    """Inside it floating-point arguments are cast as CUDA's autocast to bfloat16 casts them, without its cache of weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            named = (kwargs[name] for name in ("query", "key", "value") if name in kwargs)
            return _Flash.apply(*_cast([*args, *named][:3], torch.bfloat16))  # type: ignore[no-untyped-call]
        to = torch.bfloat16 if func in LOW else torch.float32 if func in HIGH else None
        if func in WIDEST and any(each.dtype == torch.float32 for each in args[0]):
            to = torch.float32
        if to is not None:
            args, kwargs = _cast(args, to), {name: _cast(value, to) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _cast(value: Any, to: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(to) if value.is_floating_point() else value
    return type(value)(_cast(each, to) for each in value) if isinstance(value, (list, tuple)) else value


@contextmanager
def kept_bytes(network: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[Counter[int]]:
    """Counts what autograd keeps inside the block, by the number of the network's block that it belongs to; -1: of none. Parameters are
    not counted, and each storage once."""
    own = {each.untyped_storage()._cdata for each in network.parameters()}
    seen: dict[int, Any] = {}  # kept alive, so that no address is given twice
    found: Counter[int] = Counter()
    inside = [-1]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in seen:
            seen[storage._cdata] = storage
            found[inside[-1]] += storage.nbytes()
        return tensor

    def enter(number: int) -> Callable[..., None]:
        return lambda *_: inside.append(number)

    def leave(*_: object) -> None:
        inside.pop()

    hooks = [block.register_forward_pre_hook(enter(number)) for number, block in enumerate(blocks)]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    try:
        with CudaAutocast(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield found
    finally:
        for hook in hooks:
            hook.remove()
