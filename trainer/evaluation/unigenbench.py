"""UniGenBench's table from the judge's verdicts, as the judge service's own command makes it.

Images without verdicts are left out of the denominators and counted; macro is the mean of the primary dimensions, micro
is all test points together. Both stand there twice: by the service's reading of the judge's answers, and by the benchmark's
own tool's, which is stricter. The leaderboard's number is macro by the tool's reading.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from trainer.evaluation.intervals import Floats, resample
from trainer.evaluation.outcomes import Outcome

MACRO, MICRO = "Overall, mean of primary dimensions", "Overall, all test points"
NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True)
class Row:
    """A line: `kind` is overall, primary or sub. `accuracy` is correct by judged (for MACRO the mean of the primary
    dimensions that are asked, None where one of them has none). The 95 % interval is of the overall rows alone. The fields
    that begin with `official` are the same by the tool's reading."""

    kind: str
    name: str
    correct: int
    judged: int
    asked: int
    accuracy: float | None
    low: float | None = None
    high: float | None = None
    official_correct: int = 0
    official_judged: int = 0
    official_accuracy: float | None = None
    official_low: float | None = None
    official_high: float | None = None


@dataclass(frozen=True)
class Table:
    """The rows whose dimension is asked at all, and how many images have verdicts; `failures` counts why not."""

    rows: tuple[Row, ...]
    pictures: int
    answered: int
    failures: Mapping[str, int]

    def accuracy(self, name: str) -> float | None:
        """Of the first row with this name."""
        return next(row.accuracy for row in self.rows if row.name == name)

    def metrics(self, key: str) -> dict[str, float]:
        """`<key>/overall` (macro) and `/overall_official` with their intervals, `/overall_micro`, `/answered_share`,
        `/primary/<dimension>`.
        """
        macro = self.rows[0]
        values = {"overall": macro.accuracy, "overall/low": macro.low, "overall/high": macro.high}
        values |= {"overall_official": macro.official_accuracy}
        values |= {"overall_official/low": macro.official_low, "overall_official/high": macro.official_high}
        values |= {"overall_micro": self.rows[1].accuracy, "answered_share": self.answered / self.pictures}
        values |= {f"primary/{row.name}": row.accuracy for row in self.rows if row.kind == "primary"}
        return {f"{key}/{name}": value for name, value in values.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it; the two blocks of the benchmark's own result file are among it, by the tool's reading."""
        blocks = {
            f"{kind}_dimensions": {
                row.name: {
                    "correct": row.official_correct,
                    "total": row.official_judged,
                    "accuracy": round(row.official_accuracy, 4),
                }
                for row in self.rows
                if row.kind == kind and row.official_accuracy is not None
            }
            for kind in ("primary", "sub")
        }
        about = {"pictures": self.pictures, "answered": self.answered, "failures": dict(self.failures)}
        return {
            "overall_accuracy": self.rows[0].accuracy,
            "overall_accuracy_micro": self.rows[1].accuracy,
            "overall_accuracy_official": self.rows[0].official_accuracy,
            **about,
            **blocks,
            "rows": [asdict(row) for row in self.rows],
        }

    def as_csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(Row.__annotations__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return buffer.getvalue()


def tabulate(outcomes: Sequence[Outcome], judge: str) -> Table:
    """The table of one set's images. `judge` is the reward whose failures are counted.

    Raises:
        ValueError: no image has test points.
    """
    dimensions = _dimensions(outcomes)
    subs = list(dict.fromkeys(dimensions[point.name] for outcome in outcomes for point in outcome.points))
    if not subs:
        raise ValueError("no picture of this set has test points; the prompts need `testpoints` and `descriptions`")
    ours, theirs = (_rows(each, dimensions, subs) for each in (outcomes, [_as_official(each) for each in outcomes]))
    rows = [
        replace(
            row,
            official_correct=other.correct,
            official_judged=other.judged,
            official_accuracy=other.accuracy,
            official_low=other.low,
            official_high=other.high,
        )
        for row, other in zip(ours, theirs, strict=True)
    ]
    failed = [outcome.errors.get(judge, "unknown") for outcome in outcomes if not _answered(outcome)]
    return Table(tuple(rows), len(outcomes), len(outcomes) - len(failed), dict(Counter(failed).most_common()))


def _as_official(outcome: Outcome) -> Outcome:
    """The image with the verdicts that the benchmark's own tool reads."""
    return replace(outcome, points=tuple(replace(point, passed=point.official) for point in outcome.points))


def _rows(outcomes: Sequence[Outcome], dimensions: Mapping[str, str], subs: Sequence[str]) -> list[Row]:
    """The table by one reading of the answers."""
    primaries = list(dict.fromkeys(primary(name) for name in subs))
    pool_DX = np.array([[primary(name) == each for each in primaries] for name in subs], np.float64)
    asked_PD, judged_PD, correct_PD = _counts(outcomes, dimensions, subs)
    correct, judged, asked = (part.sum(0) for part in (correct_PD, judged_PD, asked_PD))
    rows = [*_overall(correct_PD, judged_PD, asked, pool_DX)]
    for kind, names, pool in (("primary", primaries, pool_DX), ("sub", subs, np.eye(len(subs)))):
        counts = zip(names, correct @ pool, judged @ pool, asked @ pool, strict=True)
        rows += [Row(kind, name, int(c), int(j), int(a), c / j if j else None) for name, c, j, a in counts]
    return rows


def primary(name: str) -> str:
    """`Attribute` of `Attribute - Color` (in Chinese there are no spaces); a name without parts is its own."""
    return name.partition("-")[0].strip()


def _answered(outcome: Outcome) -> bool:
    return bool(outcome.points) and all(point.passed is not None for point in outcome.points)


def _dimensions(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """Test-point name to dimension, in English as answers have it.

    A name that no answer has explained stands for itself, spaces put right, under the primary dimension that answers
    about its neighbours have explained: Chinese points without a verdict must not make a dimension of their own.
    """
    points = [point for outcome in outcomes for point in outcome.points]
    names = {point.name: point.dimension for point in points if point.dimension is not None}
    primaries = {primary(name): primary(dimension) for name, dimension in names.items()}
    for point in points:
        if point.name not in names:
            parts = [" ".join(part.split()) for part in point.name.split("-", 1)]
            names[point.name] = " - ".join([primaries.get(parts[0], parts[0]), *parts[1:]])
    return names


def _counts(outcomes: Sequence[Outcome], dimensions: Mapping[str, str], subs: Sequence[str]) -> tuple[Floats, ...]:
    """Test points asked, judged and passed per prompt and sub dimension."""
    prompts = {index: p for p, index in enumerate(dict.fromkeys(outcome.index for outcome in outcomes))}
    place = {name: d for d, name in enumerate(subs)}
    asked, judged, correct = (np.zeros((len(prompts), len(subs))) for _ in range(3))
    for outcome in outcomes:
        for point in outcome.points:
            at = prompts[outcome.index], place[dimensions[point.name]]
            asked[at] += 1
            if _answered(outcome):
                judged[at] += 1
                correct[at] += bool(point.passed)
    return asked, judged, correct


def _overall(correct_PD: Floats, judged_PD: Floats, asked_D: Floats, pool_DX: Floats) -> Iterable[Row]:
    """Both overall rows, their intervals by resampling prompts; none where they would stand on one prompt."""
    drawn = [(w @ correct_PD, w @ judged_PD) for w in resample(len(correct_PD))]
    correct, judged, asked = (int(part.sum()) for part in (correct_PD, judged_PD, asked_D))
    for name, pool in ((MACRO, pool_DX), (MICRO, np.ones((len(asked_D), 1)))):
        [accuracy] = _mean_accuracy(correct_PD.sum(0)[None], judged_PD.sum(0)[None], pool)
        means = np.concatenate([_mean_accuracy(c, j, pool) for c, j in drawn])
        several = (judged_PD.sum(1) > 0).sum() > 1 and not np.isnan(means).all()
        low, high = np.nanquantile(means, [0.025, 0.975]).tolist() if several else (None, None)
        yield Row("overall", name, correct, judged, asked, None if np.isnan(accuracy) else float(accuracy), low, high)


def _mean_accuracy(correct_ND: Floats, judged_ND: Floats, pool_DX: Floats) -> Floats:
    """The mean over pools of correct by judged; NaN where a pool has nothing judged."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means: Floats = ((correct_ND @ pool_DX) / (judged_ND @ pool_DX)).mean(1)
    return means
