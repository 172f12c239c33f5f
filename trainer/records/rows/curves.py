"""Curves of any length in bounded memory: each point stands for as many neighbouring rows as it must."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trainer.records.rows.columns import MAX_KEYS, Floats, Steps

CAPACITY = (
    300  # points of a curve, an even number; when they are full, neighbours are joined and half of them are free again
)
_GROWTH = 16  # keys that there is room for beyond those that are there
_COUNT, _MEAN, _LOW, _HIGH = range(4)

Kept = NDArray[np.floating[Any]]


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

    Args:
        capacity: points of a curve, an even number.
        dtype: in which they are kept.
    """

    def __init__(self, capacity: int = CAPACITY, dtype: type[np.floating[Any]] = np.float32) -> None:
        self._capacity, self._dtype = capacity, dtype
        self.width = 1  # rows that a point stands for
        self._points = 0
        self._filled = 0  # rows in the last point
        self._steps = np.zeros(capacity, np.int64)
        self._keys: dict[str, int] = {}
        self._kept = self._empty(_GROWTH)  # [4, keys, capacity]

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._keys))

    def add(self, steps: Steps, numbers: Mapping[str, Floats]) -> None:
        """Take in rows: per key their values, shape [rows], NaN where a row has none."""
        known = [key for key, values in numbers.items() if self._place_of(key) is not None and len(values)]
        places = np.array([self._keys[key] for key in known], np.intp)
        values = np.array([numbers[key] for key in known], np.float64).reshape(len(known), len(steps))
        start = 0
        while start < len(steps):
            start += self._fill(steps[start:], places, values[:, start:])

    def curve(self, key: str) -> Curve | None:
        """The points of a key; None where no row has it."""
        if key not in self:
            return None
        count, mean, low, high = self._kept[:, self._keys[key], : self._points].astype(np.float64)
        return Curve(self.steps, np.where(count > 0, mean, math.nan), low, high)

    def counted(self, key: str) -> Curve | None:
        """As `curve`, of a key that rows name only where it is not 0: a row without it counts as 0."""
        if key not in self:
            return None
        count, mean, low, high = self._kept[:, self._keys[key], : self._points].astype(np.float64)
        rows = np.full(self._points, float(self.width))
        rows[-1] = self._filled
        least = np.where(count < rows, np.fmin(low, 0.0), low)
        return Curve(self.steps, count * mean / rows, least, np.fmax(high, np.where(count < rows, 0.0, high)))

    def sums(self, key: str) -> Floats:
        """Per point the sum of a key over its rows; 0 where no row has it."""
        if key not in self:
            return np.zeros(self._points)
        count, mean = self._kept[:2, self._keys[key], : self._points].astype(np.float64)
        sums: Floats = count * mean
        return sums

    @property
    def steps(self) -> Floats:
        """The last step of each point."""
        return self._steps[: self._points].astype(np.float64)

    def as_arrays(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """All of it, for a file: what JSON can hold, and arrays."""
        told = {"width": self.width, "filled": self._filled, "keys": list(self._keys)}
        kept = self._kept[:, : len(self._keys), : self._points]
        return told, {"steps": self._steps[: self._points], "kept": kept}

    @classmethod
    def from_arrays(cls, told: Mapping[str, Any], steps: NDArray[Any], kept: NDArray[Any]) -> Self:
        """The opposite of `as_arrays`. Raises TypeError, ValueError or LookupError for anything else."""
        curves, points = cls(), len(steps)
        curves.width, curves._filled, curves._points = int(told["width"]), int(told["filled"]), points
        for key in told["keys"]:
            curves._place_of(str(key))
        curves._steps[:points] = steps
        curves._kept[:, : len(curves._keys), :points] = kept
        return curves

    def _place_of(self, key: str) -> int | None:
        """Where a key is kept; None where there is no room for another."""
        place = self._keys.get(key)
        if place is None and len(self._keys) < MAX_KEYS:
            place = self._keys[key] = len(self._keys)
            if place == self._kept.shape[1]:
                self._kept = np.concatenate([self._kept, self._empty(_GROWTH)], axis=1)
        return place

    def _fill(self, steps: Steps, places: NDArray[np.intp], values: Floats) -> int:
        """Take in as many rows as there is room for without joining points. Returns how many."""
        if self._points == self._capacity and self._filled == self.width:
            self._halve()
        if self._points == 0 or self._filled == self.width:
            self._points, self._filled = self._points + 1, 0
        at, left = self._points - 1, self.width - self._filled
        taken = min(len(steps), left + (self._capacity - self._points) * self.width)
        # The first rows fill up the point that was begun, the others make points of their own.
        starts = np.concatenate([[0], np.arange(left, taken, self.width)])
        self._join(slice(at, at + len(starts)), places, values[:, :taken], starts)
        self._steps[at : at + len(starts)] = steps[np.append(starts[1:], taken) - 1]
        self._filled = int(taken - starts[-1]) + (self._filled if len(starts) == 1 else 0)
        self._points = at + len(starts)
        return taken

    def _join(self, points: slice, places: NDArray[np.intp], values: Floats, starts: NDArray[Any]) -> None:
        """Rows into points: `starts` are the rows that each point's begin with."""
        if not len(places):
            return
        known = ~np.isnan(values)
        count = np.add.reduceat(known.astype(np.float64), starts, axis=1)
        total = np.add.reduceat(np.where(known, values, 0.0), starts, axis=1)
        before = self._kept[:, places, points].astype(np.float64)
        whole = before[_COUNT] + count
        self._kept[_COUNT, places, points] = whole
        self._kept[_MEAN, places, points] = (before[_COUNT] * before[_MEAN] + total) / np.maximum(whole, 1)
        self._kept[_LOW, places, points] = np.fmin(before[_LOW], np.fmin.reduceat(values, starts, axis=1))
        self._kept[_HIGH, places, points] = np.fmax(before[_HIGH], np.fmax.reduceat(values, starts, axis=1))

    def _halve(self) -> None:
        """Join neighbours, when every point is full. Their number is even: none is left over."""
        half = self._capacity // 2
        self._steps[:half] = self._steps[1::2]
        one, other = self._kept[..., 0::2].astype(np.float64), self._kept[..., 1::2].astype(np.float64)
        count = one[_COUNT] + other[_COUNT]
        total = one[_COUNT] * one[_MEAN] + other[_COUNT] * other[_MEAN]
        low, high = np.fmin(one[_LOW], other[_LOW]), np.fmax(one[_HIGH], other[_HIGH])
        self._kept = self._empty(self._kept.shape[1])
        self._kept[..., :half] = np.stack([count, total / np.maximum(count, 1), low, high])
        self._points, self.width = half, 2 * self.width

    def _empty(self, keys: int) -> Kept:
        kept = np.zeros((4, keys, self._capacity), self._dtype)
        kept[_LOW:] = math.nan
        return kept


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

    def as_arrays(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """All of it, for a file: what JSON can hold, and arrays."""
        values = np.array(list(self._keys.values()), np.float64).reshape(len(self._keys), len(self.steps))
        return {"keys": list(self._keys)}, {"evaluated": np.array(self.steps, np.int64), "values": values}

    @classmethod
    def from_arrays(cls, told: Mapping[str, Any], evaluated: NDArray[Any], values: NDArray[Any]) -> Self:
        """The opposite of `as_arrays`. Raises TypeError, ValueError or LookupError for anything else."""
        found = cls()
        found.steps = array("q", evaluated.tolist())
        found._keys = {str(key): array("d", row.tolist()) for key, row in zip(told["keys"], values, strict=True)}
        return found

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
