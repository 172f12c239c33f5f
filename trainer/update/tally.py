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
        self._sums: dict[str, Tensor] = {}
        self._lows: dict[str, Tensor] = {}
        self._highs: dict[str, Tensor] = {}
        self._count = torch.zeros((), dtype=torch.float64, device=world.device)

    def add(self, name: str, value: Tensor) -> None:
        """Add a loss to the total `name`."""
        _accumulate(self._totals, {name: value})

    def add_stats(self, stats: Stats) -> None:
        self._count += stats.count
        _accumulate(self._sums, stats.sums)
        _accumulate(self._totals, stats.totals)
        for name, value in stats.lows.items():
            self._lows[name] = torch.minimum(self._lows.get(name, value), value)
        for name, value in stats.highs.items():
            self._highs[name] = torch.maximum(self._highs.get(name, value), value)

    def is_finite(self) -> bool:
        """Whether every loss was, on this rank: a sum does not become finite again."""
        return bool(torch.stack([value.isfinite() for value in self._totals.values()]).all())

    def metrics(self) -> dict[str, float]:
        """Of all ranks: totals as they are, sums as means over what counts, and extremes."""
        totals, sums = self._totals, self._sums
        flat = torch.stack([self._count, *totals.values(), *sums.values()])
        count, *summed = self.world.sum(flat).tolist()
        row = dict(zip([*totals, *sums], summed, strict=True))
        row |= {name: row[name] / max(count, 1.0) for name in sums}
        extremes = self.world.gather([_read(self._lows), _read(self._highs)])
        row |= {name: min(lows[name] for lows, _ in extremes) for name in self._lows}
        row |= {name: max(highs[name] for _, highs in extremes) for name in self._highs}
        return row | _derived(row)


def _accumulate(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        number = value.detach().double()
        sums[name] = sums[name] + number if name in sums else number


def _derived(row: dict[str, float]) -> dict[str, float]:
    """What follows from other numbers: the spread of the ratios, how many terms the importance weights leave, and the KL under
    its short name. Takes the squares out of the row."""
    found = {}
    if "ratio/square" in row:
        # Var(ratio) = E[(ratio - 1)^2] - (E[ratio] - 1)^2; rounding may leave it a little below 0.
        found["ratio/std"] = math.sqrt(max(row.pop("ratio/square") - (row["ratio/mean"] - 1) ** 2, 0.0))
    if "importance/square" in row:
        # Kish's effective sample size, (sum w)^2 / sum w^2, as a share of the terms; squares of 0 are a step without terms.
        square = row.pop("importance/square")
        found["importance/effective_share"] = row["importance/mean"] ** 2 / square if square else 0.0
    if "loss/kl" in row:
        found["kl"] = row["loss/kl"]
    return found


def _read(values: Mapping[str, Tensor]) -> dict[str, float]:
    numbers = torch.stack(list(values.values())).tolist() if values else []
    return dict(zip(values, numbers, strict=True))
