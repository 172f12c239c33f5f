"""What a call of `score` returns: one typed row for each item, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from pydantic import JsonValue

    from wire.schema import ItemResult, ScorerInfo


@dataclass(frozen=True, slots=True)
class Row:
    """The answer about item `index`: a finite `score`, or None with a `code` and a `message`. Never a default.

    Codes are the service's (`wire.schema.ErrorCode`), or this client's for a row whose request had no answer: `unreachable`,
    `not_ready`, `overloaded`, `timeout`, `refused`, `invalid_response`. `components` are the named parts of a score,
    `details` what was seen; times are in milliseconds.
    """

    index: int
    score: float | None
    code: str | None = None
    message: str | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, JsonValue] = field(default_factory=dict)
    cached: bool = False
    queue_ms: float = 0.0
    compute_ms: float = 0.0

    def __post_init__(self) -> None:
        assert (self.score is None) == (self.code is not None), "a row has a score or a code"


def row_of(index: int, result: ItemResult) -> Row:
    """A row from a result as it came over the wire."""
    error = result.error
    return Row(
        index,
        result.score,
        code=None if error is None else error.code.value,
        message=None if error is None else error.message,
        components=result.components,
        details=result.details,
        cached=result.cached,
        queue_ms=result.queue_ms,
        compute_ms=result.compute_ms,
    )


class Scores(Sequence[Row]):
    """The rows of one call, in the order of its items. `scorer` says what scored them; None where no row has an answer."""

    def __init__(self, rows: Sequence[Row], scorer: ScorerInfo | None) -> None:
        self.rows = tuple(rows)
        self.scorer = scorer

    @property
    def values(self) -> list[float | None]:
        """The scores, None where there is none."""
        return [row.score for row in self.rows]

    @property
    def failed(self) -> list[Row]:
        """The rows that have no score."""
        return [row for row in self.rows if row.score is None]

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"Scores({self.values})"
