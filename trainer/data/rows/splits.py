"""Splits as `datasets` names them: `train`, `train[:5%]`, `train[10:20]`, `train[-100:]`, and several joined by `+`."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from trainer.data.prompts.checks import DataError

HOLD_OUT_SEED = 42
_PART = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class Part:
    """A split by name, and which of its rows; None is from the beginning, or to the end."""

    name: str
    start: str | None = None
    stop: str | None = None

    def rows(self, count: int) -> range:
        """The rows of a split of `count`. A percentage is rounded to the nearest row; what goes beyond the end is cut."""
        start = 0 if self.start is None else _place(self.start, count)
        stop = count if self.stop is None else _place(self.stop, count)
        return range(start, max(start, stop))


def parse_split(field: str, text: str) -> list[Part]:
    """The parts of a split. Raises DataError naming the field."""
    parts = []
    for each in text.split("+"):
        found = _PART.fullmatch(each.strip())
        if found is None:
            raise DataError(f"{field} = {text}: {each.strip()!r} is no split; write train, train[:5%] or train[10:20]")
        parts.append(Part(found["name"], found["start"], found["stop"]))
    return parts


def _place(text: str, count: int) -> int:
    # Python's rounding to the even neighbour is that of `datasets`, so the same text takes the same rows.
    place = round(int(text[:-1]) * count / 100) if text.endswith("%") else int(text)
    return min(max(place + count if place < 0 else place, 0), count)


def held_out_rows(count: int, share: float) -> tuple[list[int], list[int]]:
    """Rows to train on and rows to hold out: the same for the same number of rows, whatever the run's seed.

    As `train_test_split(test_size=share, seed=42)` of `datasets` draws them: the first share of a permutation of NumPy's
    generator is held out, rounded up. Both come in the file's order.

    Raises:
        DataError: nothing would be left of one of the two.
    """
    held = int(np.ceil(share * count))
    if not 0 < held < count:
        raise DataError(f"hold_out = {share:g} of {count} rows leaves {count - held} to train on; lower it or add rows")
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(count)
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())
