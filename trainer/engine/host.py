"""Tensors of the device in the host's memory, as a checkpoint keeps them."""

from __future__ import annotations

import torch
from torch import Tensor


def to_host(tensor: Tensor) -> Tensor:
    """A float32 copy on the CPU that is nobody else's, made in one pass: from CUDA into pinned memory, else the driver would copy it
    through a small pinned buffer of its own."""
    kept = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=tensor.is_cuda)
    return kept.copy_(tensor.detach())
