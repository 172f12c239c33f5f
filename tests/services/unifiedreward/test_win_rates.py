"""Scores from comparisons: win rates against an independent count, Bradley-Terry against hand and Newton's method."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest

from services.unifiedreward.groups import FlexWeights
from services.unifiedreward.parsing.common import Judgement
from services.unifiedreward.ratings import PRIOR_GAMES, Comparison, Tally, bradley_terry, position_flips, tally
from services.unifiedreward.schedules import FirstPlaces, Swiss, make_schedule
from wire.schema import ErrorCode

FAILURES = (ErrorCode.PARSE_ERROR, ErrorCode.TRUNCATED, ErrorCode.UPSTREAM, ErrorCode.TIMEOUT)


def won(winner, loser):
    return Comparison(winner, loser, Judgement(1.0))


def drawn(a, b):
    return Comparison(a, b, Judgement(0.5))


def random_comparisons(count, seed):
    """Every pair once, in a random order of show: a third fails, a fifth of the rest is a tie."""
    chance = random.Random(seed)
    made = []
    for a, b in itertools.combinations(range(count), 2):
        first, second = chance.sample((a, b), 2)
        if chance.random() < 1 / 3:
            made.append(Comparison(first, second, failure=chance.choice(FAILURES)))
        else:
            share = 0.5 if chance.random() < 0.2 else chance.choice((0.0, 1.0))
            made.append(Comparison(first, second, Judgement(share)))
    return made


@pytest.mark.parametrize("count", range(2, 17))
def test_win_rates_equal_an_independent_count(count):
    for seed in range(20):
        comparisons = random_comparisons(count, seed)
        for image, own in enumerate(tally(count, comparisons)):
            mine = [each for each in comparisons if image in (each.first, each.second)]
            decided = [each for each in mine if each.judgement is not None]
            rate = Fraction(0)
            for each in decided:
                mirrored = each.judgement.share if each.first == image else 1 - each.judgement.share
                rate += Fraction(mirrored) / len(decided)
            assert (own.asked, own.valid) == (count - 1, len(decided))
            assert sorted(own.failures) == sorted(each.failure for each in mine if each.failure)
            if decided:
                assert own.win_rate == pytest.approx(float(rate), abs=1e-15)
                assert own.mean_share == pytest.approx(float(rate), abs=1e-15)
                losses = sum(each.judgement.share == float(each.second == image) for each in decided)
                assert own.wins + own.ties + losses + len(own.failures) == count - 1


def test_without_failures_win_rates_sum_to_half_the_group():
    comparisons = [each for each in random_comparisons(9, 1) if each.judgement] + [
        drawn(each.first, each.second) for each in random_comparisons(9, 1) if not each.judgement
    ]
    assert sum(own.win_rate for own in tally(9, comparisons)) == pytest.approx(4.5)


def test_bradley_terry_of_two_images_is_the_logarithm_of_the_odds():
    """3 wins to 1: the odds are 3, so the strengths are ±log(3)/2."""
    games = [won(0, 1)] * 3 + [won(1, 0)]
    assert bradley_terry(2, games, prior_games=0) == pytest.approx([math.log(3) / 2, -math.log(3) / 2], abs=1e-8)


def test_bradley_terry_multiplies_odds_along_a_chain():
    """0 beats 1 two to one, 1 beats 2 five to one; 0 and 2 never met: the odds between them are 2 times 5."""
    games = [won(0, 1)] * 2 + [won(1, 0)] + [won(1, 2)] * 5 + [won(2, 1)]
    strengths = bradley_terry(3, games, prior_games=0)
    assert strengths[0] - strengths[1] == pytest.approx(math.log(2), abs=1e-7)
    assert strengths[0] - strengths[2] == pytest.approx(math.log(10), abs=1e-7)


def test_ties_alone_make_all_equal_and_a_tie_is_half_a_win():
    assert bradley_terry(3, [drawn(0, 1), drawn(1, 2), drawn(2, 0)]) == pytest.approx([0, 0, 0])
    assert bradley_terry(2, [drawn(0, 1)] * 2) == pytest.approx(bradley_terry(2, [won(0, 1), won(1, 0)]))


def test_an_undefeated_image_has_a_finite_strength():
    """One game, half a prior game each way: with x the odds of image 0 against the average opponent,
    1.5 = x²/(x² + 1) + x/(x + 1), since image 1 mirrors image 0.
    """
    strength = bradley_terry(2, [won(0, 1)])[0]
    x = math.exp(strength)
    assert x * x / (x * x + 1) + x / (x + 1) == pytest.approx(1 + PRIOR_GAMES, abs=1e-8)


def newton(count, comparisons, prior):
    """The same maximum by Newton's method on the penalised log-likelihood."""
    s = np.zeros(count)
    for _ in range(100):
        gradient = prior * (1 - 2 / (1 + np.exp(-s)))
        hessian = np.diag(-2 * prior * np.exp(-s) / (1 + np.exp(-s)) ** 2)
        for each in comparisons:
            if each.judgement is None:
                continue
            a, b = each.first, each.second
            p = 1 / (1 + np.exp(s[b] - s[a]))
            gradient[a] += each.judgement.share - p
            gradient[b] -= each.judgement.share - p
            hessian[[a, b, a, b], [a, b, b, a]] += p * (1 - p) * np.array([-1, -1, 1, 1])
        s = s - np.linalg.solve(hessian, gradient)
    return s - s.mean()


@pytest.mark.parametrize("count", [2, 3, 8, 16])
def test_bradley_terry_equals_newtons_method(count):
    for seed in range(5):
        comparisons = random_comparisons(count, seed)
        assert bradley_terry(count, comparisons) == pytest.approx(newton(count, comparisons, PRIOR_GAMES), abs=1e-6)


def test_flips_are_pairs_in_which_the_same_place_won_twice():
    """0 against 1: the first shown wins both times. 0 against 2: image 0 wins both times. 1 against 2: a tie in one."""
    comparisons = [won(0, 1), won(1, 0), won(0, 2), Comparison(2, 0, Judgement(0.0)), drawn(1, 2), won(2, 1)]
    assert position_flips(3, comparisons) == [1, 1, 0]
    failed = Comparison(1, 0, failure=ErrorCode.TIMEOUT)
    assert position_flips(3, [won(0, 1), failed]) == [0, 0, 0]


def flex_tally(wins, valid, **parts):
    return Tally(asked=valid, valid=valid, wins=wins, shares=[1.0] * wins + [0.0] * (valid - wins), parts=parts)


def test_the_flex_score_is_the_published_formula_as_it_is_meant():
    """Win rate 1/2, category rates A 1, B 1/2, C 0: (0.3·0.5 + 0.7·(1·1 + 0.7·0.5 + 0.7·0)/2.4) / 1."""
    own = flex_tally(1, 2, A=[1.0, 1.0], B=[1.0, 0.0], C=[0.0, 0.0])
    assert FlexWeights().score(own) == pytest.approx(0.15 + 0.7 * 1.35 / 2.4)
    assert FlexWeights(1, 0).score(own) == 0.5
    assert FlexWeights(0, 2, (0, 0, 5)).score(own) == 0
    winner = flex_tally(1, 1, A=[0.0], B=[0.0], C=[1.0])
    assert FlexWeights(0.3, 0.7, (1, 0.7, 0.1)).score(winner) == pytest.approx(0.3 + 0.7 * 0.1 / 1.8)


def test_a_category_that_was_never_judged_has_no_weight_and_without_any_there_is_no_score():
    assert FlexWeights().score(flex_tally(1, 1, B=[1.0])) == pytest.approx(1.0)
    assert FlexWeights().score(flex_tally(1, 1)) is None


def degrees(count, pairs):
    assert len(set(map(frozenset, pairs))) == len(pairs), "a pair twice"
    assert all(a != b for a, b in pairs)
    return sorted(sum(image in pair for pair in pairs) for image in range(count))


def connected(count, pairs):
    reached = {0}
    for _ in range(count):
        reached |= {image for pair in pairs for image in pair if reached & set(pair)}
    return len(reached) == count


@pytest.mark.parametrize("count", range(2, 26))
def test_random_opponents_make_a_regular_connected_graph(count):
    for k in range(1, count + 1):
        for seed in range(3):
            pairs = make_schedule("random", k, count, seed).next_round([0] * count)
            wanted = min(k, count - 1)
            odd = wanted % 2 and count % 2
            assert degrees(count, pairs) == [wanted] * (count - 1) + [wanted + 1 if odd else wanted]
            assert k == 1 or connected(count, pairs)


def test_the_same_seed_gives_the_same_opponents_and_another_seed_others():
    draw = [make_schedule("random", 4, 12, seed).next_round([0] * 12) for seed in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


@pytest.mark.parametrize("count", [7, 8, 16])
def test_swiss_rounds_never_repeat_a_pair_and_nobody_plays_twice_in_one(count):
    chance = random.Random(0)
    schedule = make_schedule("swiss", 4, count, seed=3)
    assert isinstance(schedule, Swiss) and schedule.rounds == 4
    everything, points = [], [0.0] * count
    for _ in range(schedule.rounds):
        pairs = schedule.next_round(points)
        assert len({image for pair in pairs for image in pair}) == 2 * len(pairs) == count - count % 2
        for pair in pairs:
            points[chance.choice(pair)] += 1
        everything += pairs
    met = degrees(count, everything)
    assert met[0] >= 4 - count % 2 and met[-1] == 4


def test_swiss_pairs_neighbours_by_points():
    schedule = make_schedule("swiss", 2, 6, seed=0)
    assert sorted(schedule.next_round([5, 0, 4, 1, 3, 2])) == [(0, 2), (1, 3), (4, 5)]
    assert (0, 2) not in schedule.next_round([5, 0, 4, 1, 3, 2])


@pytest.mark.parametrize("count", range(2, 25))
def test_first_places_are_shared_out(count):
    pairs = list(itertools.combinations(range(count), 2))
    shown = FirstPlaces("single", count).orient(pairs)
    assert sorted(map(tuple, map(sorted, shown))) == pairs
    surplus = [sum((first == i) - (second == i) for first, second in shown) for i in range(count)]
    assert max(map(abs, surplus)) <= 2
    assert FirstPlaces("lower-first", count).orient(pairs) == pairs
    assert sorted(FirstPlaces("swap", count).orient(pairs)) == sorted(pairs + [(b, a) for a, b in pairs])
