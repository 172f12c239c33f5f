"""Which rows take part: of each file a share, some of it held out, and files that are drawn from together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from trainer.config.packed import PackedConfig, PackGroupConfig, PackSetConfig
from trainer.data.packing.shuffle import Shuffle
from trainer.data.prompts.checks import DataError
from trainer.data.sequences import Plans

Open = Callable[[PackGroupConfig, PackSetConfig], Plans]


@dataclass(frozen=True)
class PackSet:
    """The rows of a file that take part: `used` of its `total`, drawn by `seed`, of which `held_out` are not trained on.

    Which rows these are depends on the seed, the set's name and the numbers alone, so that a start draws them again.
    """

    plans: Plans
    total: int
    used: int
    held_out: int
    seed: int

    def __len__(self) -> int:
        """Rows that are trained on."""
        return self.used - self.held_out

    def row(self, place: int) -> int:
        """The number in the file of the row at `place` of those that are trained on."""
        return self._order[self.held_out + place]

    def held_out_rows(self) -> list[int]:
        """The numbers in the file of those that are not."""
        return [self._order[place] for place in range(self.held_out)]

    @cached_property
    def _order(self) -> Shuffle:
        return Shuffle(self.total, self.seed, "rows", self.plans.name)


@dataclass(frozen=True)
class PackGroup:
    """Files that are drawn from together, all rows of them once before any comes again.

    Attributes:
        weight: how often a row is drawn from it, relative to other groups.
        mandatory: every pack begins with a row of it.
    """

    name: str
    sets: tuple[PackSet, ...]
    weight: float = 1.0
    mandatory: bool = False

    def __len__(self) -> int:
        """Rows that are trained on."""
        return self._ends[-1]

    def row(self, position: int, seed: int) -> tuple[Plans, int]:
        """The file, and the number in it, of the row at a position of the group's endless dealing, counted from 0.

        Positions are dealt in epochs, each in an order of its own; with as many positions as rows every row is seen.
        """
        epoch, offset = divmod(position, len(self))
        place = Shuffle(len(self), seed, "epoch", self.name, epoch)[offset]
        number = bisect_right(self._ends, place)
        each = self.sets[number]
        return each.plans, each.row(place - (self._ends[number] - len(each)))

    def held_out(self) -> Iterator[tuple[Plans, int]]:
        """The rows of all its files that are not trained on."""
        for each in self.sets:
            yield from ((each.plans, number) for number in each.held_out_rows())

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(each) for each in self.sets))


def open_groups(
    sections: Sequence[PackGroupConfig], open_plans: Open, packed: PackedConfig, seed: int
) -> list[PackGroup]:
    """The groups with their files opened.

    Raises:
        DataError: a group has no row to train on, two of its files have one name, or what `open_plans` raises.
    """
    groups = []
    for section in sections:
        sets = [_set(open_plans(section, each), each, packed.hold_out, seed) for each in section.sets]
        names = [each.plans.name for each in sets]
        if len(set(names)) < len(names):
            raise DataError(
                f"packed.groups: {section.name} has two sets of one name among {', '.join(names)}; name one"
            )
        group = PackGroup(section.name, tuple(sets), section.weight, section.mandatory)
        if not len(group):
            raise DataError(f"packed.groups: {section.name} has no row to train on ({', '.join(names)}); leave it out")
        groups.append(group)
    return groups


def _set(plans: Plans, section: PackSetConfig, hold_out: int, seed: int) -> PackSet:
    total = len(plans)
    # Rounded down, after a rounding that takes the dust of binary fractions off: .29 of 100 rows are 29.
    used = min(int(round(section.share * total, 6)), section.max_rows or total)
    if not used:
        raise DataError(
            f"packed.groups: {plans.name}: share = {section.share:g} of {total} rows is no row; raise it, or leave the set out"
        )
    if section.held_out:
        return PackSet(plans, total, used, used, seed)
    if used <= hold_out:
        raise DataError(
            f"packed.hold_out = {hold_out} rows of each set leave none of the {used} rows of {plans.name} to train on; lower it"
        )
    return PackSet(plans, total, used, min(hold_out, used), seed)
