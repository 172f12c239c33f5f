"""What the parts of an update add up to, kept on the device: it is read once, at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.losses import Stats
from trainer.processes.distributed import World


class Tally:
    """Sums, least and largest values by name. All ranks add the same names."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._totals: dict[str, Tensor] = {}
        self._sums: dict[str, dict[str, Tensor]] = {}  # by group
        self._counts: dict[str, Tensor] = {}  # terms of a group, which its sums are means over
        self._lows: dict[str, Tensor] = {}
        self._highs: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add a loss to the total `name`."""
        accumulate(self._totals, {name: value})

    def add_stats(self, stats: Stats) -> None:
        accumulate(self._counts, {stats.group: stats.count})
        accumulate(self._sums.setdefault(stats.group, {}), _grouped(stats.sums, stats.group))
        accumulate(self._totals, _grouped(stats.totals, stats.group))
        for name, value in _grouped(stats.lows, stats.group).items():
            self._lows[name] = torch.minimum(self._lows.get(name, value), value)
        for name, value in _grouped(stats.highs, stats.group).items():
            self._highs[name] = torch.maximum(self._highs.get(name, value), value)

    def is_finite(self) -> bool:
        """Whether every loss was, on this rank: a sum does not become finite again."""
        return bool(torch.stack([value.isfinite() for value in self._totals.values()]).all())

    def metrics(self) -> dict[str, float]:
        """Of all ranks: totals as they are, sums as means over what counts (NaN where nothing does), and extremes (infinite there)."""
        sums = {name: value for group in self._sums.values() for name, value in group.items()}
        flat = torch.stack([*self._counts.values(), *self._totals.values(), *sums.values()])
        ends = [value.double() for value in [*self._lows.values(), *self._highs.values()]]
        own = torch.cat([flat, *(end.view(1) for end in ends)]).tolist()  # the device is waited for once
        told = torch.tensor(self.world.gather(own), dtype=torch.float64)
        numbers = told[:, : len(flat)].sum(0).tolist()
        ends_of_E = told[:, len(flat) :].T.tolist()  # of each extreme, what every rank has
        low, high = ends_of_E[: len(self._lows)], ends_of_E[len(self._lows) :]
        counts = dict(zip(self._counts, numbers, strict=False))
        row = dict(zip([*self._totals, *sums], numbers[len(counts) :], strict=True))
        # A mean of nothing is no number, as the extremes of nothing are none: rows show null.
        for group, named in self._sums.items():
            row |= {name: row[name] / counts[group] if counts[group] else math.nan for name in named}
        row |= {name: min(each) for name, each in zip(self._lows, low, strict=True)}
        row |= {name: max(each) for name, each in zip(self._highs, high, strict=True)}
        for group in self._counts:
            row |= _derived(row, group)
        return row


def _grouped(values: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    return {_key(group, name): value for name, value in values.items()}


def _key(group: str, name: str) -> str:
    return f"{group}/{name}" if group else name


def accumulate(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Add 0-d tensors to sums by name, float64, where they are."""
    for name, value in values.items():
        number = value.detach().double()
        sums[name] = sums[name] + number if name in sums else number


def _derived(row: dict[str, float], group: str) -> dict[str, float]:
    """What follows from other numbers of a group: the spread of the ratios, how many terms the importance weights leave, and the
    KL under its short name. Takes the squares out of the row."""
    found = {}
    if (square := row.pop(_key(group, "ratio/square"), None)) is not None:
        # Var(ratio) = E[(ratio - 1)^2] - (E[ratio] - 1)^2; rounding may leave it a little below 0.
        found["ratio/std"] = math.sqrt(max(square - (row[_key(group, "ratio/mean")] - 1) ** 2, 0.0))
    if (square := row.pop(_key(group, "importance/square"), None)) is not None:
        # Kish's effective sample size, (sum w)^2 / sum w^2, as a share of the terms; squares of 0 are a step without terms.
        found["importance/effective_share"] = row[_key(group, "importance/mean")] ** 2 / square if square else 0.0
    if (kl := row.get(_key(group, "loss/kl"))) is not None:
        found["kl"] = kl
    return {_key(group, name): value for name, value in found.items()}
