"""What objectives on given texts share: a step's rows of this rank, read, sorted by length, cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from trainer.config import ConfigError
from trainer.policies.base import GivenText
from trainer.types import StopTrainingError

_ATTEMPTS = 10  # rows tried for one place before the data is given up
RowT_co = TypeVar("RowT_co", covariant=True)
ReadT = TypeVar("ReadT")


class Rows(Protocol[RowT_co]):
    """Where given rows come from (`trainer.data.dealt.Dealt`)."""

    name: str

    def __len__(self) -> int: ...

    def row(self, number: int, attempt: int = 0) -> RowT_co:
        """The row at place `number` of the run, or a substitute for it."""
        ...


class GivenRows(Generic[RowT_co, ReadT]):
    """This rank's places of a step. Any number of rows can be shared by any number of ranks.

    A row that cannot be read is passed over for the next draw of its place, at most ten times.

    Args:
        read: raises ConfigError, naming the row, where it cannot be read.
        share: (r, n): this is rank r of n.
        batch_size: rows of a step, over all ranks.

    Attributes:
        refused: why a row was passed over, by the sentence, in the order in which they were met.

    Raises:
        ConfigError: a step has fewer rows than ranks, or none that can be read.
    """

    def __init__(
        self, rows: Rows[RowT_co], read: Callable[[Any], ReadT], batch_size: int, share: tuple[int, int] = (0, 1)
    ) -> None:
        rank, ranks = share
        if batch_size < ranks:
            raise ConfigError(
                f"{rows.name}.batch_size = {batch_size} rows leave one of {ranks} ranks without any; make it {ranks} or more"
            )
        self.rows, self.batch_size, self._read = rows, batch_size, read
        self.places = range(rank * batch_size // ranks, (rank + 1) * batch_size // ranks)
        self.refused: dict[str, None] = {}

    def of_step(self, step: int) -> tuple[list[ReadT], int]:
        """What stands at this rank's places after `step` finished steps, and how many rows were passed over.

        Raises:
            StopTrainingError: a place found no row that can be read.
        """
        found, skipped = list[ReadT](), 0
        for place in self.places:
            read, attempts = self._fill(step * self.batch_size + place)
            found.append(read)
            skipped += attempts
        return found, skipped

    def readable(self, rows: Sequence[Any]) -> list[ReadT]:
        """These rows as the policy reads them, without those that cannot be read."""
        found = list[ReadT]()
        for row in rows:
            try:
                found.append(self._read(row))
            except ConfigError as error:
                self.refused[str(error)] = None
        return found

    def check_first(self) -> None:
        """Raises ConfigError where the first place finds no row, so that a wrong file is found before the first step."""
        try:
            self._fill(0)
        except StopTrainingError as error:
            raise ConfigError(str(error)) from error

    def _fill(self, number: int) -> tuple[ReadT, int]:
        problem = ""
        for attempt in range(_ATTEMPTS):
            try:
                return self._read(self.rows.row(number, attempt)), attempt
            except ConfigError as error:
                problem = str(error)
                self.refused[problem] = None
        raise StopTrainingError(
            f"{self.rows.name}: {_ATTEMPTS} rows in a row cannot be read, the last: {problem}; correct the files"
        )


def by_length(rows: Sequence[ReadT], length: Callable[[ReadT], int], size: int | None) -> list[list[ReadT]]:
    """The rows, the shortest first, `size` at a time; None takes all at once. A micro-batch is padded to its own longest
    row, so rows of like length share one."""
    ordered = sorted(rows, key=length)
    size = size or max(len(ordered), 1)
    return [ordered[first : first + size] for first in range(0, len(ordered), size)]


def shortened(text: GivenText, longest: int | None, name: str) -> GivenText:
    """The text without what lies beyond `longest` tokens.

    Raises:
        ConfigError: that would cut through its images, or leave nothing to learn, or more than the policy has positions for; `name`
            is said.
    """
    if longest is None or text.length <= longest:
        kept = text
    else:
        stays = longest - (text.length - len(text.tokens))
        if stays <= 0 or stays < text.needed:
            where = "its question, where its images are" if stays <= 0 else "the images of a later turn"
            raise ConfigError(
                f"{name} has {text.length} tokens, and to cut it to max_tokens = {longest} would cut through {where}; raise "
                "max_tokens, shorten it, or give fewer images"
            )
        kept = replace(text, tokens=text.tokens[:stays], learnt=text.learnt[:stays], length=longest)
    if kept.most is not None and kept.length > kept.most:
        raise ConfigError(
            f"{name} has {kept.length} tokens, and the model has positions for {kept.most}; set max_tokens to {kept.most}, which cuts "
            "its end, or shorten it"
        )
    if not any(kept.learnt):
        raise ConfigError(
            f"{name} has no token of an assistant to learn"
            + ("" if kept is text else f" within max_tokens = {longest}; raise it")
        )
    return kept


def learnt_mask(texts_B: Sequence[GivenText]) -> Tensor:
    """bool (B, S), padded on the right: the tokens that are learnt."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(text.learnt) for text in texts_B], batch_first=True)
