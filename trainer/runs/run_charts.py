"""Which charts a run's page has: every key of its rows, those that belong together in one chart."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.records import keys
from trainer.records.starts import course_of, start_of
from trainer.report.charts import Chart, Series
from trainer.runs.axes import AXES, Place, place_of
from trainer.runs.reading import IMAGES, is_of_evaluation
from trainer.runs.run import Run

MAX_CHARTS = 120
_TASKS = ("understand", "generate")
# A key's pattern, the section it stands in, the title of its chart, and its name there.
_RULES: tuple[tuple[re.Pattern[str], str, str, str], ...] = tuple(
    (re.compile(pattern), section, title, label)
    for pattern, section, title, label in (
        (r"dataset/(.+)/([^/]+)/mean", "Rewards", r"\2 by data set", r"\1"),
        (r"reward/(.+)/valid_share", "Rewards", "share of valid scores", r"\1"),
        (r"reward/(.+)/std", "Rewards", "spread of scores", r"\1"),
        (r"adv/(.+)/abs_mean", "Advantages", "mean |advantage| per reward", r"\1"),
        (r"adv/(.+)/zero_group_share", "Advantages", "groups without signal", r"\1"),
        (r"adv/(mean|std|abs_mean)", "Advantages", "advantage, all rewards together", r"\1"),
        (r"(adv/.+)", "Advantages", r"\1", r"\1"),
        (r"ratio/(mean|min|max)", "Update", "ratio", r"\1"),
        (r"((?:ratio|loss|importance|drift|dpo|nft)/.+|clip_share|kl|grad_norm|lr)", "Update", r"\1", r"\1"),
        (r"packed/(.+)/(ce|mse)", "Update", r"packs: \2 by group", r"\1"),
        (r"text/(length|length_max)", "Texts", "length of answers, tokens", r"\1"),
        (r"(text|plan|image)/(.+)", "Texts", r"\1 \2", r"\2"),
        (r"time/(rollout|reward_wait|update|total)", "Time", "time of a step, seconds", r"\1"),
        (r"time/(encode|denoise|decode)", "Time", "rollout, seconds", r"\1"),
        (r"time/(.+)", "Time", r"\1, seconds", r"\1"),
        (r"wait/(.+)", "Time", "waiting for rewards, seconds", r"\1"),
        (r"(reward_wait_share)", "Time", "share of a step spent waiting", r"\1"),
        (r"memory/(.+)", "Hardware", "GPU memory, GiB", r"\1"),
        (r"perf/(.+)", "Hardware", "model FLOPs utilization", r"\1"),
        (r"(.+)_per_s", "Hardware", r"\1 a second", r"\1"),
        (r"latency_ms/(.+)/(p50|p95|max)", "Reward latency", r"\1: latency, ms", r"\2"),
        (r"failed/([^/]+)/(.+)", "Failures", r"\1: failed scores of a step", r"\2"),
        (r"cached/(.+)", "Reward latency", "scores from the cache", r"\1"),
        (r"stats/([^/]+)", "Images", r"\1", "training"),
        (r"(.+)", "Other", r"\1", r"\1"),
    )
)
_SECTIONS = (
    "Rewards",
    "Advantages",
    "Update",
    "Texts",
    "Time",
    "Hardware",
    "Reward latency",
    "Failures",
    "Images",
    "Other",
)
_UNIT = re.compile(r"share|accuracy|utilization")


@dataclass(frozen=True)
class _At:
    section: str
    title: str
    label: str


def charts_of(run: Run, axis: str = "step") -> list[tuple[str, list[Chart]]]:
    """Section by section the charts of a run. Call with the run's lock held, or its curves may change meanwhile."""
    place = place_of(run, axis) or place_of(run, "step")
    assert place is not None, "every run has steps"
    label = AXES[axis] if place_of(run, axis) is not None else AXES["step"]
    found: dict[str, dict[str, list[Series]]] = {section: {} for section in _SECTIONS}
    for name in rewards_of(run):
        found["Rewards"][name] = reward_series(run, name, place)
    for key in run.curves:
        if keys.reward_of(key) is not None or key in (IMAGES, "step") or is_of_evaluation(key):
            continue
        at = _place_of_key(key)
        found[at.section].setdefault(at.title, []).append(training(run, key, at.label, place))
    for key in run.evaluations:
        if (held := _of_evaluation(key)) is not None:
            found[held.section].setdefault(held.title, []).append(held_out(run, key, held.label, place))
    marks = place(changed_at(run))
    sections = [
        (
            section,
            [
                Chart(
                    title,
                    series,
                    name=f"{section}/{title}",
                    x_label=label,
                    unit=section == "Rewards" or bool(_UNIT.search(title)),
                    zero=section not in ("Rewards", "Advantages"),
                    marks=marks,
                )
                for title, series in titles.items()
                if any(math.isfinite(y) for each in series for y in each.y)
            ],
        )
        for section, titles in found.items()
    ]
    return _first(sections, MAX_CHARTS)


def rewards_of(run: Run) -> list[str]:
    """Every reward with scores of training or of evaluations; those of a set with a name are `<set>/<reward>`."""
    names = dict.fromkeys(name for key in run.curves if (name := keys.reward_of(key)) is not None)
    for key in run.evaluations:
        if key.startswith("eval/") and key.endswith("/valid_share"):
            names[key.removeprefix("eval/").removesuffix("/valid_share")] = None
    return list(names)


def reward_series(run: Run, name: str, place: Place) -> list[Series]:
    """A reward in training, and held out with its interval."""
    found = []
    if keys.reward(name, "mean") in run.curves:
        found.append(training(run, keys.reward(name, "mean"), "training", place, color=1))
    if f"eval/{name}" in set(run.evaluations):
        found.append(held_out(run, f"eval/{name}", "held-out", place, color=0))
    return found


def training(run: Run, key: str, label: str, place: Place, color: int | None = None) -> Series:
    """A key of every step; where a point stands for several steps, a band from the least to the largest of them."""
    curve = run.curves.curve(key)
    if curve is None:
        return Series(label, [], [], color=color)
    low, high = (curve.low.tolist(), curve.high.tolist()) if curve.joined else ([], [])
    return Series(label, place(curve.steps.tolist()), curve.mean.tolist(), low, high, color=color)


def held_out(run: Run, key: str, label: str, place: Place, color: int | None = None) -> Series:
    """What evaluations found, with the interval where there is one."""
    steps, (values, low, high) = run.evaluations.points([key, f"{key}/low", f"{key}/high"])
    if not any(map(math.isfinite, low)):
        low, high = [], []
    return Series(label, place(steps), values, low, high, thick=True, color=color)


def changed_at(run: Run) -> list[float]:
    """The steps from which a later start went on with another configuration."""
    starts = [start_of(name, run.folder.text("starts", name)) for name, _ in run.folder.entries("starts")]
    return [float(step) for step, _ in course_of(start for start in starts if start is not None)]


def _place_of_key(key: str) -> _At:
    task = next((task for task in _TASKS if key.startswith(f"{task}/")), "")
    plain = key.removeprefix(f"{task}/") if task else key
    for pattern, section, title, label in _RULES:
        if match := pattern.fullmatch(plain):
            told = match.expand(title)
            return _At(section, f"{told}, {task}" if task else told, match.expand(label))
    raise AssertionError("the last rule takes every key")


def _of_evaluation(key: str) -> _At | None:
    """Where a key of evaluations stands that is no reward's."""
    parts = key.split("/")
    if parts[0] == "stats" and len(parts) == 3:
        return _At("Images", parts[2], "held-out" if parts[1] == "heldout" else parts[1])
    if parts[0] == "heldout" and len(parts) == 2:
        return _At("Update", "on held-out rows", parts[1])
    return None


def _first(sections: Sequence[tuple[str, list[Chart]]], most: int) -> list[tuple[str, list[Chart]]]:
    kept = []
    for section, charts in sections:
        if charts and most > 0:
            kept.append((section, charts[:most]))
        most -= len(charts)
    return kept
