"""Sequences one behind the other, none of them copied."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class Joined(Sequence[T]):
    """The items of all parts, in order. What a part reads when it is asked is read when this is."""

    def __init__(self, parts: Iterable[Sequence[T]]) -> None:
        self.parts: list[Sequence[T]] = []
        for given in parts:
            self.parts += given.parts if isinstance(given, Joined) else [given]
        self._ends = list(itertools.accumulate(len(part) for part in self.parts))

    @staticmethod
    def parts_of(items: Iterable[T]) -> Sequence[Iterable[T]]:
        """The parts of what is joined; of anything else itself."""
        return items.parts if isinstance(items, Joined) else [items]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        part = bisect.bisect_right(self._ends, place)
        return self.parts[part][place - (self._ends[part - 1] if part else 0)]

    def __iter__(self) -> Iterator[T]:
        return itertools.chain.from_iterable(self.parts)
