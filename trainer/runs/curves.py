"""Curves of any length in bounded memory: each point stands for as many neighbouring rows as it must."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CAPACITY = 300  # points of a curve; when they are full, neighbours are joined and half of them are free again
MAX_KEYS = 2000  # of a run; more are no metrics, and are left out
_COUNT, _MEAN, _LOW, _HIGH = range(4)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Points of one key: the last step each stands for, the mean of its rows, their least and their largest; NaN: none."""

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats

    @property
    def joined(self) -> bool:
        """Whether a point stands for several rows that differ."""
        return bool(np.any(self.low < self.high))


class Curves:
    """Numbers by key over rows. Rows come in order; a row's point is known by its place, so all keys share their steps.

    Memory: 4 numbers of 4 bytes for each of 300 points, 4.8 kB a key, whatever the number of rows.
    """

    def __init__(self) -> None:
        self.width = 1  # rows that a point stands for
        self._points = 0
        self._filled = 0  # rows in the last point
        self._steps = np.zeros(CAPACITY, np.int64)
        self._keys: dict[str, NDArray[np.float32]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._keys))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in rows; what is no number is left out."""
        start = 0
        while start < len(rows):
            if self._points == 0 or self._filled == self.width:
                self._open_point()
            part = rows[start : start + self.width - self._filled]
            self._take(part)
            self._filled += len(part)
            self._steps[self._points - 1] = part[-1]["step"]
            start += len(part)

    def curve(self, key: str) -> Curve | None:
        """The points of a key; None where no row has it."""
        if (kept := self._keys.get(key)) is None:
            return None
        count, mean, low, high = kept[:, : self._points].astype(np.float64)
        steps = self._steps[: self._points].astype(np.float64)
        return Curve(steps, np.where(count > 0, mean, math.nan), low, high)

    def sums(self, key: str) -> Floats:
        """Per point the sum of a key over its rows; 0 where no row has it."""
        if (kept := self._keys.get(key)) is None:
            return np.zeros(self._points)
        count, mean = kept[:2, : self._points].astype(np.float64)
        sums: Floats = count * mean
        return sums

    @property
    def steps(self) -> Floats:
        """The last step of each point."""
        return self._steps[: self._points].astype(np.float64)

    def _open_point(self) -> None:
        if self._points == CAPACITY:
            self._halve()
        self._points, self._filled = self._points + 1, 0

    def _halve(self) -> None:
        """Join neighbours, when every point is full. CAPACITY is even: none is left over."""
        self._steps[: CAPACITY // 2] = self._steps[1::2]
        for kept in self._keys.values():
            count = kept[_COUNT, 0::2] + kept[_COUNT, 1::2]
            total = kept[_COUNT, 0::2] * kept[_MEAN, 0::2] + kept[_COUNT, 1::2] * kept[_MEAN, 1::2]
            joined = np.stack(
                [
                    count,
                    total / np.maximum(count, 1),
                    np.fmin(kept[_LOW, 0::2], kept[_LOW, 1::2]),
                    np.fmax(kept[_HIGH, 0::2], kept[_HIGH, 1::2]),
                ]
            )
            kept[:] = _empty()
            kept[:, : CAPACITY // 2] = joined
        self._points, self.width = CAPACITY // 2, 2 * self.width

    def _take(self, part: Sequence[Mapping[str, Any]]) -> None:
        at = self._points - 1
        for key in part[0] if len(part) == 1 else {key: None for row in part for key in row}:
            values = [float(value) for row in part if (value := row.get(key)) is not None and _is_number(value)]
            if not values or key == "step":
                continue
            kept = self._keys.get(key)
            if kept is None:
                if len(self._keys) >= MAX_KEYS:
                    continue
                kept = self._keys[key] = _empty()
            before = float(kept[_COUNT, at])
            kept[_MEAN, at] = (before * float(kept[_MEAN, at]) + math.fsum(values)) / (before + len(values))
            kept[_COUNT, at] = before + len(values)
            kept[_LOW, at] = np.fmin(kept[_LOW, at], min(values))
            kept[_HIGH, at] = np.fmax(kept[_HIGH, at], max(values))


class Evaluations:
    """What evaluations found: few rows, each kept as it is. Beyond `most` every second one is let go, never the last."""

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self.steps = array("q")
        self._keys: dict[str, array[float]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._keys))

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Take in the numbers of the evaluation of the weights after `step` steps."""
        if len(self.steps) >= self._most:
            # Beginning with the first, so that the start, which gains are measured from, stays.
            self.steps = self.steps[::2]
            self._keys = {key: kept[::2] for key, kept in self._keys.items()}
        for key, value in values.items():
            if key not in self._keys and _is_number(value) and len(self._keys) < MAX_KEYS:
                self._keys[key] = array("d", [math.nan] * len(self.steps))
        self.steps.append(step)
        for key, kept in self._keys.items():
            value = values.get(key)
            kept.append(float(value) if value is not None and _is_number(value) else math.nan)

    def values(self, key: str) -> Sequence[float]:
        """Per evaluation the number of a key, NaN where it has none."""
        return self._keys.get(key) or [math.nan] * len(self.steps)

    def points(self, keys: Iterable[str]) -> tuple[list[int], list[list[float]]]:
        """The evaluations that have the first of `keys`: their steps, and per key their numbers."""
        columns = [self.values(key) for key in keys]
        kept = [n for n, value in enumerate(columns[0]) if math.isfinite(value)]
        return [self.steps[n] for n in kept], [[column[n] for n in kept] for column in columns]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e38


def _empty() -> NDArray[np.float32]:
    kept = np.zeros((4, CAPACITY), np.float32)
    kept[_LOW:] = math.nan
    return kept
