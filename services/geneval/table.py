"""GenEval's table: the share of right images by task, their mean, and bootstrap intervals.

Axes: P prompts, T tasks, N resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.geneval.specification import TAGS

OVERALL, IMAGES, PROMPTS = "Overall, mean of tasks", "Images that are right", "Prompts with a right image"


@dataclass(frozen=True)
class Judged:
    """One image: its prompt, task and verdict, None where there is none."""

    index: int
    tag: str
    correct: bool | None


@dataclass(frozen=True)
class Line:
    """A line of the table; `value` in 0 to 1, None where nothing was judged; the bounds of its 95 % interval likewise."""

    name: str
    correct: int
    judged: int
    asked: int
    value: float | None
    low: float | None
    high: float | None


def tabulate(images: Sequence[Judged], *, resamples: int = 10_000, seed: int = 0) -> list[Line]:
    """A line for each task asked, and three for all: as GenEval's own summary gives them.

    Images without a verdict are left out of the shares and counted. The percentile bootstrap (Efron 1979) draws prompts
    with replacement within their task, each with all its images, because the images of one prompt are not independent.
    """
    tags = [*(tag for tag in TAGS if any(each.tag == tag for each in images))]
    tags += sorted({each.tag for each in images} - set(tags))
    rng = np.random.default_rng(seed)
    lines, draws, shares = [], [], []
    for tag in tags:
        own = [each for each in images if each.tag == tag]
        correct_P, judged_P = _counts(own)
        value, drawn_N = _share(correct_P, judged_P, rng, resamples)
        shares.append(value)
        draws.append(drawn_N)
        lines.append(_line(tag, own, value, drawn_N, len(correct_P)))
    known = [value for value in shares if value is not None]
    overall = sum(known) / len(known) if len(known) == len(tags) else None
    overall_N = np.mean(draws, axis=0)
    lines.append(_line(OVERALL, images, overall, overall_N, len({each.index for each in images})))
    lines.append(_pooled(IMAGES, images, *_counts(images), rng, resamples))
    correct_P, judged_P = _counts(images)
    lines.append(
        _pooled(PROMPTS, images, (correct_P > 0).astype(np.float64), (judged_P > 0).astype(np.float64), rng, resamples)
    )
    return lines


def table_text(lines: Sequence[Line]) -> str:
    """The table for a terminal, in percent."""
    rows = [f"{'':32}{'right':>8}{'95 % interval':>20}{'judged / asked':>18}"]
    for line in lines:
        interval = "-" if line.low is None or line.high is None else f"{100 * line.low:.2f} to {100 * line.high:.2f}"
        value = "-" if line.value is None else f"{100 * line.value:.2f}"
        rows.append(f"{line.name:32}{value:>8}{interval:>20}{f'{line.judged} / {line.asked}':>18}")
    missing = [tag for tag in TAGS if tag not in {line.name for line in lines}]
    if missing:
        rows.append(f"not asked: {', '.join(missing)}: no number for the leaderboard")
    return "\n".join(rows)


def _counts(images: Sequence[Judged]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right and judged images of each prompt."""
    places = {index: place for place, index in enumerate(dict.fromkeys(each.index for each in images))}
    correct_P, judged_P = np.zeros(len(places)), np.zeros(len(places))
    for each in images:
        if each.correct is not None:
            judged_P[places[each.index]] += 1
            correct_P[places[each.index]] += each.correct
    return correct_P, judged_P


def _share(
    correct_P: NDArray[np.float64], judged_P: NDArray[np.float64], rng: np.random.Generator, resamples: int
) -> tuple[float | None, NDArray[np.float64]]:
    weights_NP = rng.multinomial(len(correct_P), np.full(len(correct_P), 1 / len(correct_P)), resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn_N = (weights_NP @ correct_P) / (weights_NP @ judged_P)
    return (float(correct_P.sum() / judged_P.sum()) if judged_P.sum() else None), drawn_N


def _pooled(
    name: str,
    images: Sequence[Judged],
    correct_P: NDArray[np.float64],
    judged_P: NDArray[np.float64],
    rng: np.random.Generator,
    resamples: int,
) -> Line:
    value, drawn_N = _share(correct_P, judged_P, rng, resamples)
    bounds = _bounds(value, drawn_N, len(correct_P))
    return Line(name, int(correct_P.sum()), int(judged_P.sum()), _asked(name, images), value, *bounds)


def _line(name: str, images: Sequence[Judged], value: float | None, drawn_N: NDArray[np.float64], prompts: int) -> Line:
    correct = sum(bool(each.correct) for each in images)
    judged = sum(each.correct is not None for each in images)
    return Line(name, correct, judged, len(images), value, *_bounds(value, drawn_N, prompts))


def _asked(name: str, images: Sequence[Judged]) -> int:
    return len({each.index for each in images}) if name == PROMPTS else len(images)


def _bounds(value: float | None, drawn_N: NDArray[np.float64], prompts: int) -> tuple[float | None, float | None]:
    """None where the interval would stand on one prompt, whose resamples are all alike and would pass for certainty."""
    if value is None or prompts < 2 or np.isnan(drawn_N).all():
        return None, None
    low, high = np.nanquantile(drawn_N, [0.025, 0.975])
    return float(low), float(high)
