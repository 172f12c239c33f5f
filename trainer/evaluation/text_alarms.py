"""Signs that a policy of texts learns the form of an answer and not the answer: rules over the first and the present
evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from trainer.config import AlarmsConfig, RewardsConfig
from trainer.config.tasks import length_field
from trainer.evaluation.artefacts.texts import GIVEN_FORMAT
from trainer.evaluation.outcomes import Alarm, Outcome, metric_name

_TEXTS = {"generate": "plans"}  # what the texts of a task are, where they are no answers


def text_alarms(
    row: Mapping[str, float],
    start: Sequence[Outcome],
    now: Sequence[Outcome],
    rewards: RewardsConfig,
    config: AlarmsConfig,
    tasks: Mapping[str, str] = MappingProxyType({}),
) -> list[Alarm]:
    """What the evaluation `now`, with its `row` entries, shows of texts against the one at the `start`, set by set.

    Args:
        tasks: the task of each set by its name, of a policy with tasks. The texts of one that draws are plans of its images.
    """
    found: list[Alarm] = []
    for set_name in dict.fromkeys(outcome.set for outcome in now if "length" in outcome.statistics):
        before, after = ([outcome for outcome in each if outcome.set == set_name] for each in (start, now))
        found += _format_only(set_name, row, before, after, rewards, config.format_only)
        task = tasks.get(set_name, "")
        found += _length(set_name, _TEXTS.get(task, "answers"), row, before, after, rewards, config.length_factor)
        found += _truncated(set_name, task, before, after, config.truncated_share)
    return found


def _format_only(
    set_name: str,
    row: Mapping[str, float],
    before: Sequence[Outcome],
    after: Sequence[Outcome],
    rewards: RewardsConfig,
    least: float | None,
) -> Iterator[Alarm]:
    """The format reward has surely risen, by `least` or more, and among answers of the right form no more are right than were:
    what there is of a rise is less than its standard error."""
    column = rewards.role("format")
    key = f"eval/{metric_name(set_name, column or '')}/gain"
    if least is None or column is None or row.get(f"{key}_low", 0.0) <= 0 or row[key] < least:
        return
    first, second = (_values(each, GIVEN_FORMAT) for each in (before, after))
    if min(len(first), len(second)) < 2:
        return
    rise = float(np.mean(second) - np.mean(first))
    error = math.sqrt(np.var(first, ddof=1) / len(first) + np.var(second, ddof=1) / len(second))
    if rise < error or rise <= 0:
        yield Alarm(
            f"text/{metric_name(set_name, 'format_only')}",
            f"{column} rose by {row[key]:.3g} since the start, while accuracy given format went from {np.mean(first):.3g} to "
            f"{np.mean(second):.3g} ({rise:+.3g}, standard error {error:.2g}): only the form of the answers is being learned.",
        )


def _length(
    set_name: str,
    texts: str,
    row: Mapping[str, float],
    before: Sequence[Outcome],
    after: Sequence[Outcome],
    rewards: RewardsConfig,
    factor: float | None,
) -> Iterator[Alarm]:
    """Answers are `factor` times as long as at the start, and accuracy, where a column says it, has not surely risen."""
    first, second = (_values(each, "length") for each in (before, after))
    asked = {name for outcome in after for name in outcome.scores}
    column = name if (name := rewards.role("accuracy")) in asked else None
    gain_low = 0.0 if column is None else row.get(f"eval/{metric_name(set_name, column)}/gain_low", 0.0)
    if factor is None or not first or gain_low > 0 or np.mean(second) <= factor * max(float(np.mean(first)), 1.0):
        return
    told = f"while {column} has not surely risen" if column is not None else "and no column says whether they are right"
    yield Alarm(
        f"text/{metric_name(set_name, 'length')}",
        f"{texts} have grown from {np.mean(first):.3g} to {np.mean(second):.3g} tokens on average (limit {factor:g} times), "
        f"{told}: length is running away.",
    )


def _truncated(
    set_name: str, task: str, before: Sequence[Outcome], after: Sequence[Outcome], limit: float | None
) -> Iterator[Alarm]:
    """More texts than `limit` are cut off."""
    first, second = (_values(each, "truncated") for each in (before, after))
    if limit is None or np.mean(second) <= limit:
        return
    at_start = f"{100 * np.mean(first):.0f} % were at the start" if first else "of the start nothing is known"
    yield Alarm(
        f"text/{metric_name(set_name, 'truncated')}",
        f"{100 * np.mean(second):.0f} % of the {_TEXTS.get(task, 'answers')} are cut off at {length_field(task)} (limit "
        f"{100 * limit:.0f} %; {at_start}): what they would have said never counts. Raise it, or reward shorter ones.",
    )


def _values(outcomes: Sequence[Outcome], name: str) -> list[float]:
    return [outcome.statistics[name] for outcome in outcomes if name in outcome.statistics]
