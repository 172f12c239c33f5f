"""From comparisons to scores: win rates over the comparisons that were decided, and Bradley-Terry strengths.

Axes: G images of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.unifiedreward.parsing.common import Judgement
from wire.schema import ErrorCode

# Every image also won and lost half a game against an opponent of average strength: without it the strength of an
# image that won all its games is infinite. The larger, the closer together the strengths.
PRIOR_GAMES = 0.5

_STEPS = 10_000
_CLOSE = 1e-10


@dataclass(frozen=True)
class Comparison:
    """One call: the places of the images in the group, in the order shown, and what came of it.

    `judgement` or `failure` is None. `text` are the judge's words, or the reason of the failure.
    """

    first: int
    second: int
    judgement: Judgement | None = None
    failure: ErrorCode | None = None
    text: str = ""

    @property
    def outcome(self) -> str:
        """`ok`, `tie` or the code of the failure."""
        if self.judgement is None:
            assert self.failure is not None
            return self.failure.value
        return "tie" if self.judgement.tie else "ok"


@dataclass
class Tally:
    """One image's part in the comparisons of its group. Those that failed are counted and nothing else."""

    asked: int = 0
    valid: int = 0
    wins: int = 0
    ties: int = 0
    shares: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    failures: list[ErrorCode] = field(default_factory=list)

    @property
    def win_rate(self) -> float:
        """(wins + ties/2) / valid."""
        return (self.wins + self.ties / 2) / self.valid

    @property
    def mean_share(self) -> float:
        return mean(self.shares)

    @property
    def mean_parts(self) -> dict[str, float]:
        return {name: mean(shares) for name, shares in self.parts.items()}


def tally(count: int, comparisons: Iterable[Comparison]) -> list[Tally]:
    """One tally per image of a group of `count`."""
    tallies = [Tally() for _ in range(count)]
    for comparison in comparisons:
        for image, is_first in ((comparison.first, True), (comparison.second, False)):
            _count(tallies[image], comparison, is_first)
    return tallies


def position_flips(count: int, comparisons: Iterable[Comparison]) -> list[int]:
    """For each image, the pairs it is in whose two orders gave different winners."""
    shares: dict[tuple[int, int], float] = {}
    flips = [0] * count
    for each in comparisons:
        if each.judgement is None:
            continue
        back = shares.get((each.second, each.first))
        if back is not None and (back - 0.5) * (each.judgement.share - 0.5) > 0:  # the same place won both times
            flips[each.first] += 1
            flips[each.second] += 1
        shares[each.first, each.second] = each.judgement.share
    return flips


def bradley_terry(
    count: int, comparisons: Iterable[Comparison], prior_games: float = PRIOR_GAMES
) -> NDArray[np.float64]:
    """Log-strengths of the images [G], mean 0: P(i beats j) = 1 / (1 + exp(s_j - s_i)). Ties are half a win each.

    By the minorise-maximise steps of Hunter, "MM algorithms for generalized Bradley-Terry models" (Annals of
    Statistics 32, 2004), equation 3, with `prior_games` wins and as many losses of each image against an opponent of
    strength 1. With `prior_games=0` every image must have won and lost, and all must be connected.
    """
    wins = np.zeros((count, count))
    for each in comparisons:
        if each.judgement is not None:
            share = 0.5 if each.judgement.tie else float(each.judgement.share > 0.5)
            wins[each.first, each.second] += share
            wins[each.second, each.first] += 1 - share
    games, won = wins + wins.T, wins.sum(1) + prior_games
    strength = np.ones(count)
    for _ in range(_STEPS):
        expected = (games / (strength[:, None] + strength)).sum(1) + 2 * prior_games / (strength + 1)
        updated = won / np.where(expected > 0, expected, 1.0)
        if prior_games == 0:
            updated /= np.exp(np.log(updated).mean())
        done = bool(np.abs(updated - strength).max() < _CLOSE * updated.max())
        strength = updated
        if done:
            break
    logs = np.log(strength)
    centred: NDArray[np.float64] = logs - logs.mean()
    return centred


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _count(tally: Tally, comparison: Comparison, is_first: bool) -> None:
    tally.asked += 1
    judgement = comparison.judgement
    if judgement is None:
        assert comparison.failure is not None
        tally.failures.append(comparison.failure)
        return
    share = judgement.share if is_first else 1 - judgement.share
    tally.valid += 1
    tally.ties += judgement.tie
    tally.wins += share > 0.5
    tally.shares.append(share)
    for name, part in judgement.parts.items():
        tally.parts.setdefault(name, []).append(part if is_first else 1 - part)
