"""What fewer comparisons cost in accuracy: groups judged by a noisy judge, all pairs against random and Swiss opponents.

    python benchmarks/pairwise_cost.py
    python benchmarks/pairwise_cost.py --error 0.2 --groups 2000

The judge is simulated: images have a true quality drawn from a normal distribution and the judge prefers the better one
with the Bradley-Terry probability of their difference, scaled so that `--error` of all comparisons go against the truth
(human labels contradict the published judges about that often). Every schedule judges the same groups. The service's own
schedules and ratings are used. Numbers are mean Spearman correlations over the groups, with the standard error of the
mean in the JSON: with the true quality, and with the ranks that all pairs of the same judge give.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import write_results
from services.unifiedreward.parsing.common import Judgement
from services.unifiedreward.ratings import Comparison, bradley_terry, tally
from services.unifiedreward.schedules import PairsMode, make_schedule

Verdicts = dict[tuple[int, int], float]  # for a pair (lower, higher): 1 if the lower won


def scale_for(error: float) -> float:
    """The factor on quality differences for which a pair's verdict is wrong with probability `error`.

    Two standard normals differ by a normal of variance 2; the verdict is wrong with probability E[1/(1 + exp(s |d|))].
    """
    differences = np.abs(np.random.default_rng(0).normal(0, math.sqrt(2), 200_000))
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        if (1 / (1 + np.exp(np.minimum(middle * differences, 700)))).mean() > error:
            low = middle
        else:
            high = middle
    return low


def judge_group(quality: Sequence[float], scale: float, chance: random.Random) -> Verdicts:
    """A verdict on each pair, the same whichever schedule asks for it, as of a judge at temperature 0."""
    verdicts = {}
    for a, b in itertools.combinations(range(len(quality)), 2):
        wins = chance.random() < 1 / (1 + math.exp(-scale * (quality[a] - quality[b])))
        verdicts[a, b] = float(wins)
    return verdicts


def compare(verdicts: Verdicts, mode: PairsMode, k: int, count: int, seed: int) -> list[Comparison]:
    """The comparisons of one group."""
    schedule, made = make_schedule(mode, k, count, seed), list[Comparison]()
    for _ in range(schedule.rounds):
        points = [sum(own.shares) for own in tally(count, made)]
        made += [Comparison(a, b, Judgement(verdicts[a, b])) for a, b in schedule.next_round(points)]
    return made


def win_rates(count: int, made: Sequence[Comparison]) -> list[float]:
    return [own.win_rate for own in tally(count, made)]


def strengths(count: int, made: Sequence[Comparison]) -> list[float]:
    return [float(strength) for strength in bradley_terry(count, made)]


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """The correlation of the ranks, equal values sharing their mean rank; 0 if all values of one side are equal."""
    a, b = _ranks(x), _ranks(y)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    rounded = np.round(np.asarray(values), 9)  # strengths that are equal but for the last digits
    _, inverse, counts = np.unique(rounded, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def measure(count: int, mode: PairsMode, k: int, rate: Callable[..., list[float]], args: Any) -> dict[str, Any]:
    """One row: a schedule and a rating over all groups."""
    scale, with_truth, with_all, cost = scale_for(args.error), [], [], []
    for group in range(args.groups):
        chance = random.Random(group * 1000 + count)
        quality = [chance.gauss(0, 1) for _ in range(count)]
        verdicts = judge_group(quality, scale, chance)
        made = compare(verdicts, mode, k, count, group)
        rated = rate(count, made)
        everything = compare(verdicts, "all", 0, count, group)
        cost.append(len(made))
        with_truth.append(spearman(rated, quality))
        with_all.append(spearman(rated, win_rates(count, everything)))
    return {
        "images": count,
        "schedule": mode if mode == "all" else f"{mode}, k = {k}",
        "rating": rate.__name__,
        "comparisons": float(np.mean(cost)),
        "with_truth": float(np.mean(with_truth)),
        "with_truth_se": float(np.std(with_truth) / math.sqrt(args.groups)),
        "with_all": float(np.mean(with_all)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, nargs="+", default=[8, 16, 24], help="Group sizes.")
    parser.add_argument("--k", type=int, nargs="+", default=[2, 4, 6], help="Opponents of each image.")
    parser.add_argument("--error", type=float, default=0.3, help="Share of the verdicts that contradict the truth.")
    parser.add_argument("--groups", type=int, default=500, help="Groups of each size.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/pairwise_cost.json"))
    args = parser.parse_args()
    print("| images | schedule | rating | comparisons | share of all | with the truth | with all pairs |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for count in args.images:
        schedules: list[tuple[PairsMode, int]] = [("all", 0)]
        schedules += [(mode, k) for mode in ("random", "swiss") for k in args.k if k < count - 1]
        for (mode, k), rate in itertools.product(schedules, (win_rates, strengths)):
            row = measure(count, mode, k, rate, args)
            rows.append(row)
            share = row["comparisons"] / (count * (count - 1) / 2)
            print(
                f"| {count} | {row['schedule']} | {row['rating'].replace('_', ' ')} | {row['comparisons']:.0f} | {share:.2f} "
                f"| {row['with_truth']:.3f} ± {row['with_truth_se']:.3f} | {row['with_all']:.3f} |",
                flush=True,
            )
    write_results(args.out, "pairwise_cost", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
