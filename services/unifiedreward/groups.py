"""Scores of a group from comparisons of its images."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from services.kit.judge.metrics import JudgeMetrics
from services.kit.scorer import Failure, Item, Result, Score
from services.unifiedreward.asking import Asker, Encoded, Said, before, check_item, content_seed, dominant
from services.unifiedreward.kinds import Question
from services.unifiedreward.parsing.common import Judgement
from services.unifiedreward.parsing.flex import CATEGORIES
from services.unifiedreward.ratings import Comparison, Tally, bradley_terry, position_flips, tally
from services.unifiedreward.schedules import FirstPlaces, Order, Pair, PairsMode, make_schedule
from services.unifiedreward.texts import Text
from wire.schema import ErrorCode


@dataclass(frozen=True)
class Tournament:
    """Which comparisons are made, and how many of an image's must be valid for a score: where it has fewer, all."""

    pairs: PairsMode = "all"
    k: int = 4
    order: Order = "single"
    min_valid: int = 1


@dataclass(frozen=True)
class FlexWeights:
    """Flex score = (overall · win rate + dims · Σ w_c r_c / Σ w_c) / (overall + dims), r_c the win rate in category c.

    The formula published with Pref-GRPO, as it is meant: each weight has its own effect. The sums are over the
    categories A, B, C in which the image was compared at least once.
    """

    overall: float = 0.3
    dims: float = 0.7
    categories: tuple[float, float, float] = (1.0, 0.7, 0.7)

    def score(self, own: Tally) -> float | None:
        """None where the formula has no value: no category was judged, and categories count."""
        rates = own.mean_parts
        weights = {name: weight for name, weight in zip(CATEGORIES, self.categories, strict=True) if name in rates}
        total = sum(weights.values())
        if self.dims == 0:
            return own.win_rate
        if total == 0:
            return None
        dims = sum(weight * rates[name] for name, weight in weights.items()) / total
        return (self.overall * own.win_rate + self.dims * dims) / (self.overall + self.dims)


class GroupJudge:
    """Scores groups for one reward that compares."""

    def __init__(
        self,
        reward: str,
        text: Text[Judgement],
        asker: Asker,
        metrics: JudgeMetrics,
        rules: Tournament,
        flex: FlexWeights,
    ) -> None:
        self._reward = reward
        self._text = text
        self._asker = asker
        self._metrics = metrics
        self._rules = rules
        self._flex = flex

    async def score(self, items: Sequence[Item], deadline: float) -> list[Result]:
        """One result per item. Items that cannot be judged fail; the others are compared with one another."""
        question: Question[Judgement] = self._text.question
        problems = [check_item(item, question.shows_source) for item in items]
        sound = [item for item, problem in zip(items, problems, strict=True) if problem is None]
        found = iter(await self._score_group(sound, deadline) if sound else [])
        return [next(found) if problem is None else problem for problem in problems]

    async def _score_group(self, items: Sequence[Item], deadline: float) -> list[Result]:
        problem = _group_problem(items)
        if problem is not None:
            return [problem] * len(items)
        encoded = await self._asker.encode(items, self._text.question.shows_source)
        if any(each.source is not encoded[0].source for each in encoded):
            reason = "the items of a group must be edits of one source; their `source_images` differ"
            return [Failure(ErrorCode.BAD_INPUT, reason)] * len(items)
        comparisons = await self._compare(items[0].prompt, encoded, before(deadline, time.monotonic()))
        # In a thread: strengths and details of a large group take a second, in which nobody else would be answered.
        return await asyncio.to_thread(self._results, len(items), comparisons)

    async def _compare(self, prompt: str, encoded: Sequence[Encoded], deadline: float) -> list[Comparison]:
        count = len(encoded)
        seed = content_seed(prompt, [each.image for each in encoded])
        schedule = make_schedule(self._rules.pairs, self._rules.k, count, seed)
        places = FirstPlaces(self._rules.order, count)
        comparisons: list[Comparison] = []
        for _ in range(schedule.rounds):
            points = [sum(own.shares) for own in tally(count, comparisons)]
            shown = places.orient(schedule.next_round(points))
            images = [[*encoded[a].before, encoded[a].image, encoded[b].image] for a, b in shown]
            answers = await self._asker.ask_each(self._reward, self._text, images, prompt, deadline)
            comparisons += [self._comparison(*each) for each in zip(shown, answers, strict=True)]
        return comparisons

    def _comparison(self, pair: Pair, said: Said[Judgement]) -> Comparison:
        first, second = pair
        comparison = Comparison(first, second, said.reading, said.failure, said.text)
        if said.reading is not None:
            self._metrics.calls.labels(self._reward, comparison.outcome).inc()
            if not said.reading.tie:
                winner = "first" if said.reading.share > 0.5 else "second"
                self._metrics.wins.labels(self._reward, winner).inc()
        return comparison

    def _results(self, count: int, comparisons: Sequence[Comparison]) -> list[Result]:
        strengths = bradley_terry(count, comparisons)
        flips = position_flips(count, comparisons)
        complete = all(each.judgement is not None for each in comparisons)
        mine: list[list[Comparison]] = [[] for _ in range(count)]
        for each in comparisons:
            mine[each.first].append(each)
            mine[each.second].append(each)
        return [
            self._result(place, own, float(strengths[place]), flips[place], mine[place], complete)
            for place, own in enumerate(tally(count, comparisons))
        ]

    def _result(
        self, place: int, own: Tally, strength: float, flips: int, mine: Sequence[Comparison], complete: bool
    ) -> Result:
        if own.asked == 0:
            reason = "of an odd number of images one has no opponent in a single Swiss round: raise opponents"
            return Failure(ErrorCode.NOT_APPLICABLE, reason)
        needed = min(self._rules.min_valid, own.asked)
        if own.valid < needed:
            reason = next((each.text for each in mine if each.failure is not None), "")
            counted = f"{own.valid} of {own.asked} comparisons were decided, {needed} are needed"
            return Failure(dominant(own.failures), f"{counted}: {reason}")
        value = self._value(own)
        if value is None:
            return Failure(ErrorCode.PARSE_ERROR, f"no category winner could be read in {own.valid} comparisons")
        components = {
            "wins": float(own.wins),
            "ties": float(own.ties),
            "n_valid": float(own.valid),
            "n_asked": float(own.asked),
            "win_rate": own.win_rate,
            "bradley_terry": strength,
            **own.mean_parts,
        }
        if self._rules.order == "swap":
            components["position_flips"] = float(flips)
        for code in sorted(set(own.failures)):
            components[f"n_{code.value}"] = float(own.failures.count(code))
        details: dict[str, JsonValue] = {"place": place, "comparisons": [_seen(place, each) for each in mine]}
        return Score(value, components, details, cacheable=complete)

    def _value(self, own: Tally) -> float | None:
        return self._flex.score(own) if self._reward == "flex" else own.mean_share


def _group_problem(items: Sequence[Item]) -> Failure | None:
    if len(items) == 1:
        return Failure(ErrorCode.NOT_APPLICABLE, "a group of one image has nothing to compare it with")
    prompts = {item.prompt for item in items}
    if len(prompts) > 1:
        return Failure(ErrorCode.BAD_INPUT, f"the items of a group must have one prompt; these have {len(prompts)}")
    return None


def _seen(place: int, comparison: Comparison) -> JsonValue:
    """One comparison from the side of one image; opponents are named by their place in the group."""
    first = comparison.first == place
    outcome = comparison.outcome
    if comparison.judgement is not None and outcome == "ok":
        outcome = "won" if (comparison.judgement.share > 0.5) == first else "lost"
    seen: dict[str, JsonValue] = {
        "opponent": comparison.second if first else comparison.first,
        "shown": "first" if first else "second",
        "outcome": outcome,
        "text": comparison.text,
    }
    if comparison.judgement is not None and comparison.judgement.flags:
        seen["flags"] = list(comparison.judgement.flags)
    return seen
