"""What became of each held-out sample, and the row entries that are made of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trainer.evaluation.intervals import mean_interval

Place = tuple[str, int, int]


@dataclass(frozen=True)
class Point:
    """A test point of the UniGenBench judge: its name as the prompt file writes it, its dimension in English (None
    while no answer has told it), the verdict (None where the judge gave none), and the verdict as the benchmark's own
    tool reads the same answer (None where it cannot)."""

    name: str
    dimension: str | None
    passed: bool | None
    official: bool | None = None


@dataclass(frozen=True)
class Outcome:
    """One sample's scores: plain data, a line of `scores.jsonl`.

    Attributes:
        set: name of the evaluation set, empty for the plain one.
        index, duplicate: which prompt of the set, and which of its samples.
        scores: per reward that was asked for, the score; None where there is none.
        errors: per reward without a score, the code of the failure, or `not_applicable`.
        statistics: numbers of the sample itself.
        points: test points of the judge, empty for sets without a table.
    """

    set: str
    index: int
    duplicate: int
    prompt_id: str
    scores: Mapping[str, float | None]
    errors: Mapping[str, str] = field(default_factory=dict)
    statistics: Mapping[str, float] = field(default_factory=dict)
    points: tuple[Point, ...] = ()

    @property
    def place(self) -> Place:
        return self.set, self.index, self.duplicate

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Outcome:
        """The inverse of `as_dict`. Raises TypeError when a field is missing or unknown."""
        return cls(**{**tree, "points": tuple(Point(**point) for point in tree["points"])})


@dataclass(frozen=True)
class Alarm:
    """`name` is the end of the row's key alarm/<name>; `text` a sentence for a person."""

    name: str
    text: str

    @property
    def is_own(self) -> bool:
        """Whether it is of `evaluation.alarms.own`."""
        return self.name.startswith("own/")


def metric_name(set_name: str, name: str) -> str:
    """`<reward>` for the plain set, `<set>/<reward>` for the others."""
    return f"{set_name}/{name}" if set_name else name


def score_metrics(now: Sequence[Outcome], start: Sequence[Outcome] = ()) -> dict[str, float]:
    """Row entries per reward of each set: mean, share with a score, interval, and the gain over `start`, paired.

    `eval/<name>`, `eval/<name>/valid_share|low|high|gain|gain_low|gain_high`. A mean without a score, an interval of
    one prompt and a gain without samples that both have scores of are left out.
    """
    before = {(outcome.place, outcome.prompt_id): outcome.scores for outcome in start}
    row: dict[str, float] = {}
    for set_name, reward in _columns(now):
        key = f"eval/{metric_name(set_name, reward)}"
        asked = [outcome for outcome in now if outcome.set == set_name and reward in outcome.scores]
        valid = [(outcome, score) for outcome in asked if (score := outcome.scores[reward]) is not None]
        row[f"{key}/valid_share"] = len(valid) / len(asked)
        row |= _mean(key, "", [(outcome.index, score) for outcome, score in valid])
        changes = [
            (outcome.index, score - first)
            for outcome, score in valid
            if (first := before.get((outcome.place, outcome.prompt_id), {}).get(reward)) is not None
        ]
        row |= _mean(f"{key}/gain", "gain_", changes)
    return row


def _mean(key: str, prefix: str, values: Sequence[tuple[int, float]]) -> dict[str, float]:
    """The mean under `key`, its interval beside it."""
    if not values:
        return {}
    row = {key: float(np.mean([value for _, value in values]))}
    interval = mean_interval([value for _, value in values], [index for index, _ in values])
    if interval is not None:
        parent = key.removesuffix("/gain")
        row |= {f"{parent}/{prefix}low": interval[0], f"{parent}/{prefix}high": interval[1]}
    return row


def _columns(outcomes: Iterable[Outcome]) -> list[tuple[str, str]]:
    """Every (set, reward) that was asked for, in order."""
    return list(dict.fromkeys((outcome.set, reward) for outcome in outcomes for reward in outcome.scores))
