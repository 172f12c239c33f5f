"""Which charts a run has: every key of its rows, those that belong together in one chart, with what must be said beside it.

The report and the runs page take their charts from here. A key that nobody thought of has a chart of its own, in the last section.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from trainer.records import keys
from trainer.report.by_construction import flat
from trainer.report.chart_rules import FLOORS, HELD_OUT, NOTES, RULES, SECTIONS, TASKS, Rule
from trainer.report.charts import Chart, Series
from trainer.report.source import Line, Source, is_of_evaluation, setting, trained_on

MAX_CHARTS = 150
_MOST_CURVES = 6  # in a chart: more would be a tangle on a phone, and their colours come again
_GIVEN = "accuracy given format"

Place = Callable[[Sequence[float]], list[float]]


@dataclass
class _Made:
    """A chart that is being put together: its rule, the keys of its curves, and the curves."""

    rule: Rule
    names: list[str] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)


def charts_of(source: Source, place: Place | None = None, x_label: str = "step") -> list[tuple[str, list[Chart]]]:
    """Section by section the charts of a run, each section's in the order of the rules.

    Args:
        place: steps to places on the horizontal axis; None is the steps themselves.
        x_label: what is along it.
    """
    put = place or _as_they_are
    made: dict[str, dict[str, _Made]] = {section: {} for section in SECTIONS}
    of_rewards = Rule("", "Rewards", "", "", unit=True, zero=False)
    for name in rewards_of(source):
        series = reward_series(source, name, put)
        made["Rewards"][name] = _Made(of_rewards, [f"eval/{name}"] * len(series), series)
    _form_and_content(source, put, made["Form and content"])
    for key in sorted(source.trained_keys(), key=_order):
        if keys.reward_of(key) is None and key != "step" and not is_of_evaluation(key):
            _add_trained(source, key, put, made)
    for key in source.evaluated_keys():
        if not key.startswith(("eval/", "alarm/")):
            _add_evaluated(source, key, put, made)
    marks = put(list(source.changed_at))
    sections = [(s, _charts(source, s, titles, marks, x_label)) for s, titles in made.items()]
    return _first(sections, MAX_CHARTS)


def rewards_of(source: Source) -> list[str]:
    """Every reward with scores of training or of evaluations; those of a set with a name are `<set>/<reward>`."""
    names = dict.fromkeys(name for key in source.trained_keys() if (name := keys.reward_of(key)) is not None)
    for key in source.evaluated_keys():
        # A set's keys have a share of valid scores each; the plain ones of a few older runs have none.
        if key.startswith("eval/") and key.endswith("/valid_share"):
            names[key.removeprefix("eval/").removesuffix("/valid_share")] = None
        elif key.startswith("eval/") and key != "eval/step" and (key.count("/") == 1 or key.endswith("/overall")):
            names[key.removeprefix("eval/")] = None
    return list(names)


def reward_series(source: Source, name: str, place: Place) -> list[Series]:
    """A reward in training, and held out with its interval."""
    found = []
    if keys.reward(name, "mean") in set(source.trained_keys()):
        found.append(trained(source, keys.reward(name, "mean"), "training", place, color=1))
    if f"eval/{name}" in set(source.evaluated_keys()):
        found.append(held_out(source, f"eval/{name}", "held-out", place, color=0))
    return found


def trained(source: Source, key: str, label: str, place: Place, color: int | None = None) -> Series:
    """A key of every step; where a point stands for several steps, a band from the least to the largest of them."""
    return _series(source.trained(key), label, place, color)


def held_out(source: Source, key: str, label: str, place: Place, color: int | None = None) -> Series:
    """What evaluations found, with the interval where there is one."""
    steps, (values, low, high) = source.evaluated([key, f"{key}/low", f"{key}/high"])
    if not any(map(math.isfinite, low)):
        low, high = [], []
    return Series(label, place(steps), values, low, high, thick=True, color=color)


def _as_they_are(steps: Sequence[float]) -> list[float]:
    return [float(step) for step in steps]


def _series(line: Line, label: str, place: Place, color: int | None = None) -> Series:
    return Series(label, place(line.steps), line.values, line.low, line.high, color=color)


def _add_trained(source: Source, key: str, place: Place, made: dict[str, dict[str, _Made]]) -> None:
    rule, title, label = _at(key)
    if not rule.section:
        return
    if rule.label == "ratio":
        series = _ratio(source, key, place)
    else:
        series = _series(source.counted(key) if rule.counts else source.trained(key), label, place)
    _into(made, rule, title, key, series)


def _add_evaluated(source: Source, key: str, place: Place, made: dict[str, dict[str, _Made]]) -> None:
    for pattern, section, title, label in HELD_OUT:
        if match := pattern.fullmatch(key):
            if not section:
                return
            name = match.expand(label)
            series = held_out(source, key, "held-out" if name == "heldout" else name, place)
            told = match.expand(title).replace("_", " ")
            _into(made, Rule("", section, told, "", zero=section != "Image statistics"), told, key, series)
            return


def _into(made: dict[str, dict[str, _Made]], rule: Rule, title: str, key: str, series: Series) -> None:
    at = made[rule.section].setdefault(title, _Made(rule))
    at.names.append(key)
    at.series.append(series)


@lru_cache(maxsize=4096)
def _at(key: str) -> tuple[Rule, str, str]:
    """The rule of a key, the title of its chart, and its name there."""
    task, plain = _split(key)
    for rule in RULES:
        if match := rule.match.fullmatch(plain):
            title, label = match.expand(rule.title), match.expand(rule.label)
            if rule.by_task:
                return rule, title, f"{task} {label}".strip() if task else label or title
            return rule, f"{title}, {task}" if task else title, label
    raise AssertionError("the last rule takes every key")


def _split(key: str) -> tuple[str, str]:
    """The task that a key is of, empty for most, and what it would be called without it."""
    task, _, plain = key.partition("/")
    return (task, plain) if task in TASKS and plain else ("", key)


@lru_cache(maxsize=4096)
def _order(key: str) -> int:
    plain = _split(key)[1]
    return next(n for n, rule in enumerate(RULES) if rule.match.fullmatch(plain))


def _ratio(source: Source, key: str, place: Place) -> Series:
    """Ratios lie within 1e-4 of 1, so what is drawn is the distance from 1: the mean, in a band from the least to the largest."""
    line, own = source.trained(key), key.removesuffix("ratio/mean")
    least, largest = source.trained(f"{own}ratio/min"), source.trained(f"{own}ratio/max")
    low, high = least.low or least.values, largest.high or largest.values
    if list(least.steps) != list(line.steps) or list(largest.steps) != list(line.steps):
        low, high = [], []
    y, low, high = ([value - 1 for value in values] for values in (line.values, low, high))
    label = "mean (band: least to largest)" if low else "mean"
    return Series(label, place(line.steps), y, low, high)


def _form_and_content(source: Source, place: Place, made: dict[str, _Made]) -> None:
    """Of texts: the reward split into form, accuracy, and accuracy where the form holds, in training and by held-out set."""
    roles = [setting(source.config, "rewards", "roles", role) or role for role in ("format", "accuracy")]
    known, evaluated = set(source.trained_keys()), list(source.evaluated_keys())
    rule = Rule("", "Form and content", "", "", unit=True)
    if "text/accuracy_given_format" in known:
        named = [(keys.reward(role, "mean"), role) for role in roles] + [("text/accuracy_given_format", _GIVEN)]
        found = {key: trained(source, key, label, place) for key, label in named if key in known}
        made["form and content, training"] = _Made(rule, list(found), list(found.values()))
    for key in evaluated:
        if not (match := re.fullmatch(r"stats/([^/]+)/accuracy_given_format", key)):
            continue
        own = "" if match[1] == "heldout" else f"{match[1]}/"
        named = [(f"eval/{own}{role}", role) for role in roles] + [(key, _GIVEN)]
        found = {name: held_out(source, name, label, place) for name, label in named if name in evaluated}
        made[f"form and content, {'held-out' if not own else match[1]}"] = _Made(
            rule, list(found), list(found.values())
        )


def _charts(
    source: Source, section: str, titles: Mapping[str, _Made], marks: Sequence[float], x_label: str
) -> list[Chart]:
    found = []
    for title, made in titles.items():
        drawn = [(k, s) for k, s in zip(made.names, made.series, strict=True) if any(map(math.isfinite, s.y))]
        if not drawn or (
            FLOORS.get(title.partition(",")[0], math.inf) <= min(_finite(s for _, s in drawn), default=math.inf)
        ):
            continue
        parts = [drawn[first : first + _MOST_CURVES] for first in range(0, len(drawn), _MOST_CURVES)]
        for number, part in enumerate(parts, 1):
            of = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
            found.append(
                Chart(
                    title + of,
                    [series for _, series in part],
                    name=f"{section}/{title}{of}",
                    note=_note(source, section, title, part),
                    x_label=x_label,
                    unit=made.rule.unit,
                    zero=made.rule.zero,
                    whole=made.rule.counts,
                    marks=marks,
                )
            )
    return found


def _finite(series: Iterable[Series]) -> list[float]:
    return [value for each in series for part in (each.y, each.low) for value in part if math.isfinite(value)]


def _note(source: Source, section: str, title: str, drawn: Sequence[tuple[str, Series]]) -> str:
    """What belongs to the chart, what its configuration fixes, and for a reward whether it is trained on."""
    told = [text for pattern, text in NOTES if re.fullmatch(pattern, title)]
    if section == "Rewards" and drawn[0][0].startswith("eval/"):
        used, name = trained_on(source.config), drawn[0][0].removeprefix("eval/")
        if used and name not in used and name.rpartition("/")[2] not in used:
            told.append("Never used in training.")
    several = len(drawn) > 1
    for key, series in drawn:
        if (fixed := flat(source.config, key)) is not None:
            values = [*series.y, *series.low, *series.high]
            values = (
                [value + 1 for value in values] if key.endswith("ratio/mean") else values
            )  # drawn as the distance from 1
            sentence = fixed.told(values)
            told.append(f"{series.label}: {sentence}" if several else sentence[:1].upper() + sentence[1:])
    if title.startswith("ratio − 1"):
        told += _about_ratios(source, drawn[0][0].removesuffix("ratio/mean"))
    return " ".join(told)


def _about_ratios(source: Source, own: str) -> list[str]:
    told, clip = [], setting(source.config, "objective", "clip_range")
    if isinstance(clip, int | float) and not isinstance(clip, bool):
        told.append(f"Clipped beyond ±{clip:g}.")
    line = source.trained(f"{own}ratio/replay_error")
    errors = [value for value in line.high or line.values if math.isfinite(value)]
    if errors:
        exact = "are exactly the sampled ones"
        apart = f"differ from the sampled by up to {max(errors):.2g}"
        told.append(f"Before an update, replayed log-probabilities {apart if max(errors) else exact}.")
    return told


def _first(sections: Sequence[tuple[str, list[Chart]]], most: int) -> list[tuple[str, list[Chart]]]:
    kept = []
    for section, charts in sections:
        if charts and most > 0:
            kept.append((section, charts[:most]))
        most -= len(charts)
    return kept
