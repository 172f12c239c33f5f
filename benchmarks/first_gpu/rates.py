"""How long a device takes, and the two rates that everything is held against. Needs torch alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def seconds(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    """How long the device takes for `work`, and what it returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, result


def matrix_rate(device: torch.device, size: int) -> float:
    """Measured bfloat16 matrix products, FLOP/s."""
    a = torch.randn(size, size, device=device).bfloat16()
    repeats = 20
    best = min(seconds(device, lambda: [a @ a for _ in range(repeats)])[0] for _ in range(4))
    return repeats * 2 * size**3 / best


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes."""
    a = torch.empty(2**28 if device.type == "cuda" else 2**22, device=device)
    b = torch.empty_like(a)
    best = min(seconds(device, lambda: [b.copy_(a) for _ in range(10)])[0] for _ in range(4))
    return 10 * 2 * a.numel() * a.element_size() / best
