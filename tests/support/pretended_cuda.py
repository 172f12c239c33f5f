"""What asks CUDA itself, past the modes of `tests.support.pretended_gpu`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

# What is asked of a device by its name, and moves no tensor.
_ABOUT = {
    "set_device": None,
    "get_device_name": "pretended",
    "reset_peak_memory_stats": None,
    "max_memory_allocated": 0,
}


def patch_cuda(
    patch: pytest.MonkeyPatch, device: torch.device, holds: Callable[[Tensor], bool], wait: Callable[[str], None]
) -> None:
    """
    Args:
        holds: whether a tensor is on the device.
        wait: notes that the CPU waits for it.
    """
    grouped = torch._C._group_tensors_by_device_and_dtype

    def by_device(tensorlists: Any, with_indices: bool = False) -> Any:
        """Where the clip of a gradient and the optimizers look devices up."""
        found = {}
        for (real, dtype), group in grouped(tensorlists, with_indices).items():
            held = any(holds(tensor) for tensor in group[0][0] if tensor is not None)
            found[(device if held else real, dtype)] = group
        return found

    class Mark:
        def __init__(self, **_: Any) -> None: ...

        def record(self) -> None: ...

        def synchronize(self) -> None:
            wait("Event.synchronize")

        def elapsed_time(self, other: Mark) -> float:
            return 0.0

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", by_device)
    patch.setattr(torch.cuda, "Event", Mark)
    patch.setattr(torch, "autocast", Autocast)
    patch.setattr(torch.cuda, "get_rng_state", lambda device=None: torch.zeros(16, dtype=torch.uint8))
    patch.setattr(torch.cuda, "set_rng_state", lambda state, device=None: None)
    for asked, answer in _ABOUT.items():
        patch.setattr(torch.cuda, asked, lambda *_, answer=answer: answer)
