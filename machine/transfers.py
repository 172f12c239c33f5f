"""What goes to the device without the process waiting for what the device still has to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device; from pinned memory, as a copy out of other memory may wait. One that is there stays itself."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def numbers(values: Iterable[int] | Sequence[bool], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Numbers of Python as a tensor on the device: `torch.tensor(values, device=device)` would wait."""
    return sent(torch.tensor(list(values), dtype=dtype), device)
