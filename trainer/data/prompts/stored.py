"""Prompts of a large file as they were checked, on disk: each is read when it is drawn, and what is asked of all of them is at hand.

A folder holds what one file gave:

| file | what |
|---|---|
| rows | a line for each prompt, in the file's order: what its fingerprint is taken of, as JSON; behind a tab the same with the metadata's own order of keys, where that is another |
| ids | the ids in their order, with a zero byte between two (no id has one) |
| starts.npy, lines.npy | N + 1 places of the rows in bytes; N lines of the file |
| by_id.npy | N numbers of prompts, in the order of the ids |
| marks.npy | 3 x N: checksums of the id, the text and the targets, up to what the search for overlaps takes for equal |
| about.json | the fingerprint of all prompts, and what is to be said of the file's rows |

Nothing is pickled. Why prompts are kept as they were checked, not as places in the file: docs/decisions/0154.
"""

from __future__ import annotations

import itertools
import json
import os
import weakref
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from trainer.data.fingerprints import fingerprint, fingerprint_of_rows, row_of, said
from trainer.data.joined import Joined
from trainer.data.same_images import normalised, normalised_targets
from trainer.types import Prompt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DECODER = json.JSONDecoder()
_BLOCK = 1 << 18  # bytes that are read at once, and prompts that are compared at once


class UnstorableError(Exception):
    """A prompt names images, which every start has to look at: its file is held in memory."""


class PromptWriter:
    """Writes prompts into an empty folder, in the order in which they are appended. Raises OSError where it cannot."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows = (folder / "rows").open("w+b")
        self._starts = array("q", [0])
        self._marks = tuple(array("I") for _ in range(3))

    def append(self, prompt: Prompt) -> None:
        """Raises UnstorableError."""
        if prompt.source_images:
            raise UnstorableError
        line = row_of(prompt)
        # Rewards are sent the metadata in its own order of keys, a fingerprint sorts them.
        if prompt.metadata and not _is_sorted(prompt.metadata):
            line += b"\t" + json.dumps(said(prompt)).encode()
        self._starts.append(self._starts[-1] + self._rows.write(line + b"\n"))
        for column, mark in zip(self._marks, _marks_of(prompt), strict=True):
            column.append(mark)

    def finish(self, numbers: Mapping[str, int], lines: Sequence[int], about: Mapping[str, Any]) -> None:
        """Write what there is besides the rows.

        Args:
            numbers: of each prompt, from 0, by its id.
            lines: of each prompt in the file.
            about: what `PromptFolder.about` is to say besides the fingerprint; JSON.
        """
        import numpy as np

        self._rows.flush()
        ids = sorted(numbers)
        (self._folder / "ids").write_bytes("\0".join(ids).encode())
        by_id = np.fromiter((numbers[each] for each in ids), np.int64, len(ids))
        del ids
        columns: dict[str, NDArray[Any]] = {
            "starts": np.array(self._starts, np.int64),
            "lines": np.array(lines, np.int64),
            "by_id": by_id,
            "marks": np.array(self._marks, np.uint32),
        }
        for name, column in columns.items():
            np.save(self._folder / f"{name}.npy", column, allow_pickle=False)
        said_rows = (_read_row(self._rows.fileno(), self._starts, number) for number in by_id.tolist())
        whole = {**about, "fingerprint": fingerprint_of_rows(row.partition(b"\t")[0] for row in said_rows)}
        (self._folder / "about.json").write_text(json.dumps(whole), encoding="utf-8")

    def close(self) -> None:
        """Let go of the folder, finished or not."""
        self._rows.close()


class _File:
    """A file that is read at any place by anybody, and closed with the last who can."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number)

    def parts(self, end: bytes) -> Iterator[bytes]:
        """What stands between the ends."""
        place, rest = 0, b""
        while block := os.pread(self.number, _BLOCK, place):
            place += len(block)
            *whole, rest = (rest + block).split(end)
            yield from whole
        if rest:
            yield rest


class PromptFolder:
    """The opened files of a folder that a `PromptWriter` has finished. They can be read when the folder itself is gone.

    Raises:
        OSError, ValueError: no such folder, or not all of it.
    """

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.about: Mapping[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self._rows, self._ids = _File(folder / "rows"), _File(folder / "ids")
        self._starts, self.lines, self.by_id, self.marks = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("starts", "lines", "by_id", "marks")
        )

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, number: int) -> bytes:
        """The row of prompt `number`."""
        return _read_row(self._rows.number, self._starts, number)

    def rows(self) -> Iterator[bytes]:
        """All rows, in order."""
        return self._rows.parts(b"\n")

    def ids(self) -> Iterator[bytes]:
        """All ids in UTF-8, in their order: the first is that of prompt `by_id[0]`."""
        return self._ids.parts(b"\0")


class StoredPrompts(Sequence[Prompt]):
    """The prompts of a folder as members of a data set.

    Args:
        weights, task: of all of them.
        chosen: the numbers of those that there are, ascending; None: all.
    """

    def __init__(
        self,
        folder: PromptFolder,
        dataset: str,
        weights: Mapping[str, float],
        task: str = "",
        chosen: NDArray[np.int64] | None = None,
    ) -> None:
        self._folder, self._dataset, self._weights, self._task, self._chosen = folder, dataset, weights, task, chosen

    def __len__(self) -> int:
        return len(self._folder if self._chosen is None else self._chosen)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = range(len(self))[index]
        return self._made(self._folder.row(place if self._chosen is None else int(self._chosen[place])))

    def __iter__(self) -> Iterator[Prompt]:
        rows = self._folder.rows() if self._chosen is None else map(self._folder.row, self._chosen.tolist())
        return map(self._made, rows)

    def of(self, task: str, weights: Mapping[str, float]) -> StoredPrompts:
        """The same prompts for a task, with its rewards."""
        return StoredPrompts(self._folder, self._dataset, weights, task, self._chosen)

    def without(self, ids: Set[str]) -> StoredPrompts:
        """Those with other ids."""
        import numpy as np

        left_out = {each.encode() for each in ids}
        kept = self._numbers_by_id()[[each not in left_out for each in self.ids()]]
        return StoredPrompts(self._folder, self._dataset, self._weights, self._task, np.sort(kept))

    def ids(self) -> Iterator[bytes]:
        """Their ids in UTF-8, in the order of ids."""
        if self._chosen is None:
            return self._folder.ids()
        return itertools.compress(self._folder.ids(), self._is_chosen())

    def by_id(self) -> NDArray[np.int64]:
        """The places of the prompts among these, in the order of their ids."""
        import numpy as np

        numbers = self._numbers_by_id()
        return numbers if self._chosen is None else np.searchsorted(self._chosen, numbers)

    def fingerprint(self) -> str:
        """As `fingerprints.fingerprint` of the prompts; of all of them it is known."""
        if self._chosen is None:
            return str(self._folder.about["fingerprint"])
        return fingerprint_of_rows(
            self._folder.row(number).partition(b"\t")[0] for number in self._numbers_by_id().tolist()
        )

    def like(self, others: Iterable[Prompt]) -> Iterator[Prompt]:
        """All that have the id, the text or the targets of one of the others, and a few more: the rest is not read."""
        import numpy as np

        marks = zip(*map(_marks_of, others), strict=True)
        wanted = [np.array(sorted(set(column)), np.uint32) for column in marks]
        for start in range(0, len(self._folder) if wanted else 0, _BLOCK):
            block = self._folder.marks[:, start : start + _BLOCK]
            found = np.any([np.isin(*pair) for pair in zip(block, wanted, strict=True)], axis=0)
            numbers = np.flatnonzero(found) + start
            if self._chosen is not None:
                numbers = np.intersect1d(numbers, self._chosen, assume_unique=True)
            yield from (self._made(self._folder.row(number)) for number in numbers.tolist())

    def id_marks(self) -> NDArray[np.uint32]:
        """Checksums of their ids."""
        marks: NDArray[np.uint32] = self._folder.marks[0]
        return marks if self._chosen is None else marks[self._chosen]

    def _numbers_by_id(self) -> NDArray[np.int64]:
        by_id: NDArray[np.int64] = self._folder.by_id
        return by_id if self._chosen is None else by_id[self._is_chosen()]

    def _is_chosen(self) -> NDArray[np.bool_]:
        """In the order of all ids."""
        import numpy as np

        flags = np.zeros(len(self._folder), bool)
        flags[self._chosen] = True
        found: NDArray[np.bool_] = flags[self._folder.by_id]
        return found

    def _made(self, row: bytes) -> Prompt:
        name, text, targets, metadata, *more = _DECODER.decode(row.rpartition(b"\t")[2].decode())
        return Prompt(
            name,
            text,
            self._dataset,
            self._weights,
            None if targets is None else tuple(targets),
            metadata,
            negative_prompt=more[0]["negative_prompt"] if more else None,
            task=self._task,
        )


def fingerprint_of(prompts: Sequence[Prompt]) -> str:
    """`fingerprints.fingerprint` of prompts, wherever they are kept."""
    return prompts.fingerprint() if isinstance(prompts, StoredPrompts) else fingerprint(prompts)


def in_order_of_ids(prompts: Sequence[Prompt]) -> tuple[NDArray[np.int64], Iterator[bytes]]:
    """The places of prompts in the order of their ids, and the ids in UTF-8 in that order."""
    import numpy as np

    if isinstance(prompts, StoredPrompts):
        return prompts.by_id(), prompts.ids()
    ids = [prompt.id for prompt in prompts]
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    return np.array(by_id, np.int64), (ids[place].encode() for place in by_id)


def suspects(prompts: Sequence[Prompt], others: Sequence[Prompt]) -> Iterator[Prompt]:
    """Of prompts all that may have something in common with one of the others, in order: of stored ones the rest is not read."""
    for part in Joined.parts_of(prompts):
        yield from part.like(others) if isinstance(part, StoredPrompts) else part


def one_of_each_kind(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """Prompts of all data sets, tasks and rewards that there are: of stored ones, which have these in common, the first."""
    for part in Joined.parts_of(prompts):
        yield from part[:1] if isinstance(part, StoredPrompts) else part


def places_to_compare(sets: Sequence[Sequence[Prompt]]) -> Sequence[Iterable[int]]:
    """Of each set the places of prompts whose ids may come twice in all sets; of none but held prompts all."""
    if not any(isinstance(each, StoredPrompts) for each in sets):
        return [range(len(each)) for each in sets]
    import numpy as np

    marks = [
        each.id_marks()
        if isinstance(each, StoredPrompts)
        else np.array([_mark_of(prompt.id) for prompt in each], np.uint32)
        for each in sets
    ]
    found, counts = np.unique(np.concatenate(marks), return_counts=True)
    return [np.flatnonzero(np.isin(own, found[counts > 1])).tolist() for own in marks]


def _mark_of(text: str) -> int:
    """A checksum: unequal ones are of unequal texts."""
    return zlib.crc32(text.encode())


def _marks_of(prompt: Prompt) -> tuple[int, int, int]:
    """Of the id, and of the text and the targets as overlaps are found by. Without targets 0, which is that of an empty text."""
    targets = _mark_of(normalised_targets(prompt.targets)) if prompt.targets else 0
    return _mark_of(prompt.id), _mark_of(normalised(prompt.text)), targets


def _is_sorted(value: Any) -> bool:
    """Whether all keys of a JSON value stand in their order."""
    if isinstance(value, dict):
        keys = list(value)
        return keys == sorted(keys) and all(map(_is_sorted, value.values()))
    return not isinstance(value, list) or all(map(_is_sorted, value))


def _read_row(file: int, starts: Sequence[int] | NDArray[np.int64], number: int) -> bytes:
    start = int(starts[number])
    return os.pread(file, int(starts[number + 1]) - start - 1, start)
