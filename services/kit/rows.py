"""Requests that have a row of metadata for each image and no prompts, as flow_grpo sends them for GenEval.

A scorer that can answer them has a `ServesRows`: it alone knows what its rows mean and what its clients read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from wire.schema import ItemResult


@dataclass(frozen=True)
class Rows:
    """What such a request says beside its images: a row for each, and the other fields, such as `only_strict`."""

    rows: Sequence[Mapping[str, object]]
    options: Mapping[str, object] = field(default_factory=dict)


class ServesRows(Protocol):
    """How a scorer serves these requests; its attribute `legacy_rows`. `--legacy` switches them on.

    They are scored by the reward that `reward` names, each image with its row as the item's metadata.
    """

    reward: str

    def check(self, rows: Rows) -> None:
        """Raises ValueError, which names the field, when the rows or the options are not what is served."""
        ...

    def answer(self, rows: Rows, results: Sequence[ItemResult]) -> Mapping[str, JsonValue]:
        """What the client reads. A result without a score must become NaN: there is one only where NaN is wanted."""
        ...
