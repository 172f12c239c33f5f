"""Lanes: endless streams of packs, of which a step takes one each.

A lane is known from the settings, the seed and what it has drawn so far, so neither the number of ranks nor that of the threads
changes a pack: each rank takes lanes that follow one another. Draw k of a group in lane l of n is position l + k * n of the
group's endless dealing; so all lanes together see every row before any comes again, as far as they draw equally fast.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from trainer.config.base import UserError
from trainer.config.packed import PackedConfig
from trainer.data.packing.groups import PackGroup
from trainer.data.packing.reader import Key, Reader
from trainer.data.sequences import SequencePlan
from trainer.seeds import sample_seed
from trainer.types import StopTrainingError

_ATTEMPTS = 100  # rows in a row that cannot be used before the data is given up


class Sized(Protocol):
    """A row as a policy's tokens (`trainer.policies.base.Laid`)."""

    @property
    def id(self) -> str: ...

    @property
    def length(self) -> int: ...


LaidT = TypeVar("LaidT", bound=Sized)
Lay = Callable[[SequencePlan, int], LaidT]  # a row, and the seed of all that is random in it


@dataclass(frozen=True)
class Pack(Generic[LaidT]):
    """Rows that fill a sequence.

    Attributes:
        rows: in order.
        keys: of each its group's number and its position in the group's dealing.
        left_out: what is wrong with the rows that were met and cannot be used, a sentence each.
    """

    rows: tuple[LaidT, ...]
    keys: tuple[Key, ...]
    left_out: tuple[str, ...] = ()


@dataclass
class _Filling(Generic[LaidT]):
    """A pack that is being filled; `begun` of its rows are those it had to begin with."""

    rows: list[tuple[Key, LaidT]]
    left_out: list[str]
    length: int = 0
    begun: int = 0
    failed: int = 0  # rows that could not be used since the last that could

    @property
    def is_empty(self) -> bool:
        return len(self.rows) == self.begun

    def add(self, key: Key, row: LaidT) -> None:
        self.rows.append((key, row))
        self.length += row.length
        self.failed = 0


class Lane(Generic[LaidT]):
    """One of `config.packs` streams of packs.

    A pack begins with a row of every mandatory group. Then rows that wait come first while it is shorter than
    `buffer_below`; else a group is drawn by weight. A row that does not fit waits, if fewer than `buffer_size` do; if that many
    do, or if it was waiting, it goes back to the head of those that wait, and the pack is closed. So is a pack that is full.
    """

    def __init__(
        self, number: int, config: PackedConfig, groups: Sequence[PackGroup], seed: int, reader: Reader[LaidT]
    ) -> None:
        self.number, self.config, self.groups, self.seed, self.reader = number, config, groups, seed, reader
        self._buffer_size = config.buffer_size if config.fill == "tokens" else 0
        self._mandatory = [number for number, group in enumerate(groups) if group.mandatory]
        self._shares = [group.weight / sum(each.weight for each in groups) for group in groups]
        self.drawn = [0] * len(groups)  # rows, by group
        self.choices = 0  # of a group by weight
        self.waiting: list[Key] = []

    def next(self) -> Pack[LaidT]:
        """The next pack. Raises StopTrainingError where the rows cannot be used."""
        filling = _Filling[LaidT]([], [])
        for group in self._mandatory:
            self._begin_with(group, filling)
        filling.begun = len(filling.rows)
        taken = 0
        while not self._is_full(filling):
            waited = bool(self.waiting) and (filling.is_empty or filling.length < self.config.buffer_below)
            key = self.waiting.pop(0) if waited else self._draw(self._choose(self.choices))
            self.choices += not waited
            taken += not waited
            row = self._usable(key, filling)
            if row is None:
                continue
            if filling.length + row.length <= self.config.max_tokens:
                filling.add(key, row)
            elif filling.is_empty:
                self._leave_out(f"{row.id} has {row.length} tokens, {_BESIDE}", filling)
            elif not waited and len(self.waiting) < self._buffer_size:
                self._wait(key, row, len(self.waiting))
            else:
                self._wait(key, row, 0)
                break
        self.reader.ahead(self._coming(taken))  # while the pack is trained on
        keys, rows = zip(*filling.rows, strict=True)
        return Pack(rows, keys, tuple(filling.left_out))

    def state_dict(self) -> dict[str, Any]:
        """What it has drawn so far, as JSON. Groups are known by name."""
        names = [group.name for group in self.groups]
        return {
            "drawn": dict(zip(names, self.drawn, strict=True)),
            "choices": self.choices,
            "waiting": [[names[group], position] for group, position in self.waiting],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError where the groups are others."""
        names = [group.name for group in self.groups]
        if (before := list(state["drawn"])) != names:
            raise ValueError(f"packed.groups were {', '.join(before)}, now {', '.join(names)}")
        self.drawn = [state["drawn"][name] for name in names]
        self.choices = state["choices"]
        self.waiting = [(names.index(name), position) for name, position in state["waiting"]]

    def _begin_with(self, group: int, filling: _Filling[LaidT]) -> None:
        """Add a row of a mandatory group: the first that can be used and fits beside those of the others."""
        while True:
            key = self._draw(group)
            row = self._usable(key, filling)
            if row is not None and filling.length + row.length <= self.config.max_tokens:
                filling.add(key, row)
                return
            if row is not None:
                self._leave_out(f"{row.id} has {row.length} tokens, {_BESIDE}", filling)

    def _is_full(self, filling: _Filling[LaidT]) -> bool:
        if self.config.fill == "rows":
            assert self.config.rows_per_pack is not None, "the configuration has checked it"
            return len(filling.rows) >= self.config.rows_per_pack
        return filling.length >= self.config.expected_tokens

    def _draw(self, group: int) -> Key:
        key = (group, self.number + self.drawn[group] * self.config.packs)
        self.drawn[group] += 1
        return key

    def _choose(self, choice: int) -> int:
        """A group, by weight."""
        left = sample_seed(self.seed, "lane", self.number, "choice", choice) / 2**63  # in [0, 1)
        for group, share in enumerate(self._shares):
            if (left := left - share) < 0:
                return group
        return len(self._shares) - 1  # the shares add up to a little less than 1 by rounding

    def _usable(self, key: Key, filling: _Filling[LaidT]) -> LaidT | None:
        """The row, or None where it cannot be used; then that is said."""
        self.reader.ahead(self._coming(2 * self.reader.workers))
        try:
            row = self.reader.take(key)
        except UserError as error:
            self._leave_out(str(error), filling)
            return None
        if row.length > self.config.longest_row:
            self._leave_out(self.config.too_long(row.id, row.length), filling)
            return None
        return row

    def _leave_out(self, sentence: str, filling: _Filling[LaidT]) -> None:
        if self.config.bad_rows == "stop":
            raise StopTrainingError(f"{sentence} (packed.bad_rows = stop)")
        filling.left_out.append(sentence)
        filling.failed += 1
        if filling.failed >= _ATTEMPTS:
            raise StopTrainingError(
                f"packed: {_ATTEMPTS} rows in a row cannot be used, the last: {sentence}; correct the files"
            )

    def _wait(self, key: Key, row: LaidT, place: int) -> None:
        self.waiting.insert(place, key)
        self.reader.keep(key, row)

    def _coming(self, count: int) -> Iterator[Key]:
        """The keys of the next `count` draws, as far as they can be known before the rows' lengths are."""
        ahead = list(self.drawn)
        groups = [*self._mandatory, *(self._choose(self.choices + n) for n in range(count))] if count else []
        for group in groups:
            yield group, self.number + ahead[group] * self.config.packs
            ahead[group] += 1


_BESIDE = "which do not fit into packed.max_tokens beside a row of every mandatory group; raise max_tokens or lower max_row_tokens"


class Lanes(Generic[LaidT]):
    """The lanes of this rank.

    Args:
        lay: makes tokens of a row; it depends on the row and the seed alone, and is called by several threads.
        share: (r, n): this is rank r of n.

    Attributes:
        waited_s: how long the last call of `packs` took; near 0 where rows were read ahead.

    Raises:
        ValueError: there are fewer packs than ranks.
    """

    def __init__(
        self,
        config: PackedConfig,
        groups: Sequence[PackGroup],
        seed: int,
        lay: Lay[LaidT],
        share: tuple[int, int] = (0, 1),
    ) -> None:
        rank, ranks = share
        if config.packs < ranks:
            raise ValueError(
                f"packed.packs = {config.packs} packs a step leave one of {ranks} ranks without any; make it {ranks} or more"
            )
        self.config, self.groups, self.seed, self._lay = config, groups, seed, lay
        self.waited_s = 0.0
        self.reader = Reader(self.read, config.workers)
        own = range(rank * config.packs // ranks, (rank + 1) * config.packs // ranks)
        self.lanes = [Lane(number, config, groups, seed, self.reader) for number in own]

    def read(self, key: Key) -> LaidT:
        """The row of a key as tokens. Raises UserError where it cannot be used."""
        group, position = key
        plans, number = self.groups[group].row(position, self.seed)
        return self._lay(plans.plan(number), sample_seed(self.seed, "row", self.groups[group].name, position))

    def packs(self) -> list[Pack[LaidT]]:
        """The next pack of each lane. Raises StopTrainingError where rows cannot be used."""
        begun = time.perf_counter()
        packs = [lane.next() for lane in self.lanes]
        self.waited_s = time.perf_counter() - begun
        return packs

    def state_dict(self) -> list[dict[str, Any]]:
        """Of this rank's lanes, in order; those of all ranks, one after the other, are what `load_state_dict` takes."""
        return [lane.state_dict() for lane in self.lanes]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take this rank's share of all lanes' states. Raises ValueError where the settings are others."""
        if len(state) != self.config.packs:
            raise ValueError(f"packed.packs was {len(state)}, now {self.config.packs}")
        for lane in self.lanes:
            lane.load_state_dict(state[lane.number])

    def restore(self, own: Sequence[Mapping[str, Any]]) -> None:
        """Go back to what `state_dict` said of this rank's lanes."""
        for lane, state in zip(self.lanes, own, strict=True):
            lane.load_state_dict(state)

    def close(self) -> None:
        """Stop reading ahead."""
        self.reader.close()
