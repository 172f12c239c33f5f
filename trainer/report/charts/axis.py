"""Axes of a chart: where ticks stand, how they are written, and how a value becomes a place."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with ticks at round numbers between them.

    >>> Axis.over([0.0, 60.0]).ticks
    (0.0, 20.0, 40.0, 60.0)
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(
        cls, values: Sequence[float], *, unit: bool = False, zero: bool = False, count: int = 4, margin: float = 0.0
    ) -> Axis:
        """An axis that shows all `values` that are finite.

        Args:
            unit: show 0 to 1 whole where all values lie there, so that no axis makes a small change look large.
            zero: begin at 0 where no value is negative.
            count: about how many ticks.
            margin: what is left free at either end, as a share of the span.
        """
        finite = [value for value in values if math.isfinite(value)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        if unit and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        elif zero and low >= 0:
            low = 0.0
        if low == high:
            # One value alone has no span of its own: the axis gets a tenth of the value's size, so that its ticks differ.
            pad = abs(low) / 10 or 1.0
            low, high = low - (pad if low and not zero else 0.0), high + pad
        pad = margin * (high - low)
        low, high = (low if zero and low == 0 else low - pad), high + pad
        return cls(low, high, _ticks(low, high, count))

    def at(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high end."""
        return (value - self.low) / (self.high - self.low)


def _ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(nice * scale for nice in _NICE if nice * scale >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(n * step for n in range(first, last + 1))


def tick(value: float) -> str:
    """A tick's label, whole in itself: `0.25`, `5e−5`, `12000`."""
    text = f"{value:.6g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3g}"
    return re.sub(r"e([+−])0*", r"e\1", text.replace("-", "−")).replace("e+", "e")
