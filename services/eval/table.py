"""UniGenBench's table, with both readings of Overall, what was judged of what was asked, and bootstrap intervals.

Axes: P prompts, D the 27 sub dimensions, N resamples, K rows of the table (2 overall, 10 primary, 27 sub).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.eval.dimensions import DIMENSIONS, PRIMARIES
from services.eval.prompts import Prompt

Floats = NDArray[np.float64]

MACRO, MICRO = "Overall, mean of primary dimensions", "Overall, all test points"
_CHUNK = 500
_DIMENSION = {dimension.name: number for number, dimension in enumerate(DIMENSIONS)}
_POOL_DX = np.array([[dimension.primary == name for name in PRIMARIES] for dimension in DIMENSIONS], np.float64)


@dataclass(frozen=True)
class Judged:
    """One image: the verdicts on its prompt's points, or None where the judge gave none.

    `official`: the same answer as the benchmark's own tool reads it, None where it cannot.
    """

    prompt: Prompt
    image: int
    verdicts: tuple[int, ...] | None
    official: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table. `accuracy` is correct by judged, in 0 to 1, None where nothing was judged.

    For the mean of primary dimensions it is the mean of their accuracies, None where one of those asked has none.
    `low` and `high` bound the 95 % interval, None where it would stand on one prompt. The fields that begin with
    `official` are the same of the answers as the benchmark's own tool reads them: the leaderboard's way of counting.
    """

    kind: str
    name: str
    correct: int
    judged: int
    asked: int
    accuracy: float | None
    low: float | None
    high: float | None
    official_correct: int
    official_judged: int
    official_accuracy: float | None
    official_low: float | None
    official_high: float | None


@dataclass(frozen=True)
class Counts:
    """Test points per prompt and sub dimension, summed over the prompt's images."""

    asked_PD: Floats
    judged_PD: Floats
    correct_PD: Floats


@dataclass(frozen=True)
class Difference:
    """A line of a comparison, over what both have judged. `change` is b minus a, with its 95 % interval.

    The bounds are None where they would stand on one prompt.
    """

    kind: str
    name: str
    points: int
    a: float | None
    b: float | None
    change: float | None
    low: float | None
    high: float | None


def macro(primary_accuracies: Floats) -> Floats:
    """The leaderboard's Overall: the unweighted mean over primary dimensions, the last axis."""
    return np.asarray(primary_accuracies.mean(-1))


def tabulate(images: Sequence[Judged], *, resamples: int = 10_000, seed: int = 0) -> list[Row]:
    """The rows whose dimension is asked at all: overall, primary in the leaderboard's order, sub.

    The percentile bootstrap (Efron 1979) draws prompts with replacement, each with all its images and test points,
    because the verdicts on one prompt are not independent. Both readings are resampled by the same draws. Failures are
    left out of the denominators, as the benchmark's own tool leaves them out.
    """
    ours, theirs = count(images), count([replace(each, verdicts=each.official) for each in images])
    asked = _pool(ours.asked_PD.sum(0))
    ends = [_measure(counts, resamples, seed) for counts in (ours, theirs)]
    totals = [(_pool(counts.correct_PD.sum(0)), _pool(counts.judged_PD.sum(0))) for counts in (ours, theirs)]
    rows = []
    for k, (kind, name) in enumerate(_names()):
        if not asked[k]:
            continue
        (correct, judged), (official_correct, official_judged) = ((int(c[k]), int(j[k])) for c, j in totals)
        known, official = (_known(*(values[k] for values in each)) for each in ends)
        rows.append(
            Row(
                kind,
                name,
                correct,
                judged,
                int(asked[k]),
                accuracy=known[0],
                low=known[1],
                high=known[2],
                official_correct=official_correct,
                official_judged=official_judged,
                official_accuracy=official[0],
                official_low=official[1],
                official_high=official[2],
            )
        )
    return rows


def compare(
    a: Sequence[Judged], b: Sequence[Judged], *, resamples: int = 10_000, seed: int = 0
) -> tuple[list[Difference], int]:
    """The rows of b minus a over the images that both have verdicts on, paired by prompt and image number; and how
    many images those are. Both are resampled by the same draws of prompts, so what is common to both cancels.

    Raises ValueError when the two were asked different things about one prompt, or have no image in common.
    """
    of_b = {(each.prompt.index, each.image): each for each in b if each.verdicts is not None}
    pairs = [
        (each, of_b[place])
        for each in a
        if each.verdicts is not None and (place := (each.prompt.index, each.image)) in of_b
    ]
    for one, other in pairs:
        if one.prompt != other.prompt:
            raise ValueError(
                f"prompt {one.prompt.index} is {one.prompt.text[:60]!r} in A and {other.prompt.text[:60]!r} in B, or "
                f"has other test points: the two runs used different prompt files"
            )
    if not pairs:
        raise ValueError("no image was judged in both runs: they must share prompt indexes and image numbers")
    first, second = count([one for one, _ in pairs]), count([other for _, other in pairs])
    judged_PD = first.judged_PD
    in_use = judged_PD.sum(0) > 0
    ends = [_accuracies(each.correct_PD.sum(0), judged_PD.sum(0), in_use) for each in (first, second)]
    drawn = []
    for weights in _resample(len(judged_PD), resamples, seed):
        judged = weights @ judged_PD
        drawn.append(
            _accuracies(weights @ second.correct_PD, judged, in_use)
            - _accuracies(weights @ first.correct_PD, judged, in_use)
        )
    low, high = _interval(np.concatenate(drawn), judged_PD)
    points = _pool(judged_PD.sum(0))
    rows = [
        Difference(
            kind, name, int(points[k]), *_known(ends[0][k], ends[1][k], ends[1][k] - ends[0][k], low[k], high[k])
        )
        for k, (kind, name) in enumerate(_names())
        if points[k]
    ]
    return rows, len(pairs)


def count(images: Sequence[Judged]) -> Counts:
    """Sum what was asked, judged and passed, a row for each prompt."""
    places = {index: p for p, index in enumerate(dict.fromkeys(each.prompt.index for each in images))}
    counts = Counts(*(np.zeros((len(places), len(DIMENSIONS))) for _ in range(3)))
    for each in images:
        p = places[each.prompt.index]
        for position, point in enumerate(each.prompt.points):
            d = _DIMENSION[point.dimension.name]
            counts.asked_PD[p, d] += 1
            if each.verdicts is not None:
                counts.judged_PD[p, d] += 1
                counts.correct_PD[p, d] += each.verdicts[position]
    return counts


def _measure(counts: Counts, resamples: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """Accuracies of the K rows and the bounds of their intervals."""
    in_use = counts.asked_PD.sum(0) > 0
    accuracy = _accuracies(counts.correct_PD.sum(0), counts.judged_PD.sum(0), in_use)
    drawn = [
        _accuracies(weights @ counts.correct_PD, weights @ counts.judged_PD, in_use)
        for weights in _resample(len(counts.asked_PD), resamples, seed)
    ]
    return accuracy, *_interval(np.concatenate(drawn), counts.judged_PD)


def _names() -> list[tuple[str, str]]:
    names = [("overall", MACRO), ("overall", MICRO)]
    names += [("primary", name) for name in PRIMARIES]
    # A primary dimension without parts is its only sub dimension; the table shows both, as the benchmark's own does.
    return names + [("sub", dimension.name) for dimension in DIMENSIONS]


def _pool(counts_D: Floats) -> Floats:
    """Counts of the K rows from those of the sub dimensions; both overall rows stand on all of them."""
    whole = counts_D.sum(-1, keepdims=True)
    return np.concatenate([whole, whole, counts_D @ _POOL_DX, counts_D], axis=-1)


def _accuracies(correct_D: Floats, judged_D: Floats, in_use_D: NDArray[np.bool_]) -> Floats:
    """Accuracies of the K rows; NaN where nothing is judged. Leading axes are kept."""
    judged, correct = _pool(judged_D), _pool(correct_D)
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracies = correct / judged
    asked_primaries = (in_use_D @ _POOL_DX) > 0
    accuracies[..., 0] = macro(accuracies[..., 2 : 2 + len(PRIMARIES)][..., asked_primaries])
    return np.asarray(accuracies)


def _resample(count: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each prompt is drawn, in chunks of resamples: arrays [n, P] whose rows sum to P."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        n = min(_CHUNK, resamples - start)
        drawn = rng.integers(0, count, (n, count)) + np.arange(n)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=n * count).reshape(n, count).astype(np.float64)


def _interval(drawn_NK: Floats, judged_PD: Floats) -> tuple[Floats, Floats]:
    """The 2.5 and 97.5 percentiles of each column over the resamples in which it is known; NaN for a column of one
    prompt, whose resamples are all alike and would pass for certainty.
    """
    prompts_K = (_pool(judged_PD) > 0).sum(0)
    known = ~np.isnan(drawn_NK).all(0) & (prompts_K > 1)
    bounds = np.full((2, drawn_NK.shape[1]), np.nan)
    bounds[:, known] = np.nanquantile(drawn_NK[:, known], [0.025, 0.975], axis=0)
    return bounds[0], bounds[1]


def _known(*values: np.float64) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in values)
