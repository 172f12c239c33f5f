"""Whether a backward pass adds up in the order in which threads come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ADDS = ("_index_put_impl_", "index_put_", "index_put")


class _Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        accumulates = given.get("accumulate", args[3] if len(args) > 3 else False)
        if func.overloadpacket.__name__ in _ADDS and accumulates:
            # An axis that is taken whole has None for its index, which only the bare operation takes.
            nothing, once = torch.zeros(args[0].shape), torch.ones(args[2].shape)
            times = torch.ops.aten.index_put(nothing, args[1], once, True)
            if (times > 1).any():
                self.found.append(f"{tuple(args[2].shape)} are added to {tuple(args[0].shape)}")
        return func(*args, **given)


@contextmanager
def adds_in_order() -> Iterator[None]:
    """Fails where a place of a tensor is added to more than once by an index. Torch does that on a CPU by atomic additions of all threads once
    there are 32,768 numbers, so that the last bits of a gradient, and with them a run, are others each time."""
    with _Seen() as seen:
        yield
    assert not seen.found, f"look rows up by functional.embedding or index_select in place of x[index]: {seen.found}"
