"""How long the phases of sampling take on a device, without making it wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PhaseClock:
    """Seconds by phase. On CUDA the marks are events in the stream: they cost microseconds. `seconds` waits for the last
    one, so it belongs after something that waits for the device anyway, such as images copied to the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What runs inside belongs to phase `name`."""
        started = self._mark()
        yield
        self._spans.append((name, started, self._mark()))

    def seconds(self) -> dict[str, float]:
        """The sum of each phase so far."""
        if self._spans and isinstance(last := self._spans[-1][2], torch.cuda.Event):
            last.synchronize()  # it was recorded after what waited, and the time up to an event still to come is an error
        sums: dict[str, float] = {}
        for name, start, end in self._spans:
            sums[name] = sums.get(name, 0.0) + _between(start, end)
        return sums

    def _mark(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float) and isinstance(end, float), "both marks are of one clock"
        return end - start
    return float(start.elapsed_time(end)) / 1000
