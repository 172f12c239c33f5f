"""Several runs beside each other: curves, configurations, and held-out rewards paired by prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config import ConfigError
from trainer.config.base import did_you_mean
from trainer.evaluation.outcomes import Outcome, score_metrics
from trainer.records import keys
from trainer.records.starts import changes
from trainer.report.chart_list import held_out, rewards_of, trained
from trainer.report.charts import Chart, Series
from trainer.report.reading import IMAGES
from trainer.report.source import is_of_evaluation, number
from trainer.runs.axes import AXES, place_of
from trainer.runs.folder import Folder
from trainer.runs.run import Run
from trainer.runs.run_charts import Followed
from trainer.runs.samples import Card, cards, records_of, steps_of
from trainer.runs.table import Held

MAX_RUNS = 12
MAX_FIELDS = 400
_NAMES = ("run_name", "output_dir")  # which differ between any two runs


@dataclass(frozen=True)
class Difference:
    """One run's held-out reward minus the reference's, prompt by prompt: the mean of the differences with its interval."""

    reward: str
    mean: float
    reference: float
    held: Held
    pairs: int


@dataclass(frozen=True)
class Paired:
    """A run's differences from the reference. `problem` says why there are none."""

    run: str
    step: int | None
    differences: tuple[Difference, ...]
    problem: str = ""


def chosen(runs: Sequence[Run], names: Sequence[str], count: int) -> list[Run]:
    """The runs of these names, in their order; without names the newest `count`, of which the oldest is the reference.

    Raises:
        ConfigError: a name is no run's, or there are more than MAX_RUNS names.
    """
    known = {run.name: run for run in runs}
    for name in names:
        if name not in known:
            raise ConfigError(f"--compare: no run {name!r}{did_you_mean(name, list(known))}")
    if len(names) > MAX_RUNS:
        raise ConfigError(f"--compare: {len(names)} runs, at most {MAX_RUNS}; name fewer")
    by_age = sorted(runs, key=lambda run: run.written_at or 0.0)
    return [known[name] for name in names] or by_age[-count:]


def common_axes(runs: Sequence[Run]) -> list[str]:
    """The axes that at least one of the runs knows."""
    return [axis for axis in AXES if any(place_of(run, axis) is not None for run in runs)]


def keys_of(runs: Sequence[Run]) -> list[str]:
    """Every key of training that any of the runs has."""
    return list(dict.fromkeys(key for run in runs for key in run.curves if key != IMAGES and not is_of_evaluation(key)))


def charts_of(runs: Sequence[Run], axis: str, more: Sequence[str]) -> list[Chart]:
    """Held-out rewards, training rewards, and the keys in `more`, each with a curve per run that has it."""
    wanted = [
        (f"eval/{name}", f"{name}, held-out")
        for name in dict.fromkeys(n for r in runs for n in rewards_of(Followed(r)))
    ]
    wanted += [(key, f"{name}, training") for key in keys_of(runs) if (name := keys.reward_of(key)) is not None]
    wanted += [(key, key) for key in more if keys.reward_of(key) is None]
    found = []
    for key, title in wanted:
        series = [each for number, run in enumerate(runs) for each in _series(run, key, axis, number)]
        if series:
            unit = key.startswith(("eval/", "reward/")) or "share" in key
            found.append(Chart(title, series, name=f"compare/{key}", x_label=AXES[axis], unit=unit))
    return found


def _series(run: Run, key: str, axis: str, color: int) -> list[Series]:
    place = place_of(run, axis)
    if place is None:
        return []
    if key in set(run.evaluations):
        found = held_out(Followed(run), key, run.name, place, color)
        # Its band is what a reader compares; a mark at each evaluation of twelve runs would hide it.
        return [found] if any(map(math.isfinite, found.y)) else []
    if key not in run.curves:
        return []
    curve = trained(Followed(run), key, run.name, place, color)
    return [Series(curve.label, curve.x, curve.y, color=color)]  # the bands of several runs would hide each other


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Fields whose values are not the same in all runs, with each run's value; names of runs are left out."""
    table: dict[str, list[str]] = {}
    first = runs[0]
    for place, run in enumerate(runs):
        if place == 0 or not first.config or not run.config:
            continue
        for change in changes(first.config_text, run.config_text):
            if change.field not in _NAMES:
                row = table.setdefault(change.field, [change.before] * len(runs))
                row[place] = change.after
    return sorted(table.items())[:MAX_FIELDS]


def evaluated_steps(folder: Folder) -> list[int]:
    """The steps whose evaluation left scores by prompt."""
    found = [
        name.removeprefix("step_")
        for name, is_folder in folder.entries("eval")
        if is_folder and name.startswith("step_")
    ]
    return sorted(int(step) for step in found if step.isdecimal())


def outcomes_of(folder: Folder, step: int) -> list[Outcome]:
    """The scores of an evaluation's samples; none where they cannot be read."""
    found = []
    for line in folder.text("eval", f"step_{step:06d}", "scores.jsonl").splitlines():
        try:
            found.append(Outcome.from_dict(json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return found


def paired(runs: Sequence[Run], at: int | None) -> list[Paired]:
    """Every run but the first against the first, after step `at` or the newest step before it; None: each at its newest.

    The same statistics as of an evaluation against the start of its run: prompts are drawn with replacement, each with
    all its samples; a difference counts where both have a score of the same sample of the same prompt.
    """
    steps = [_step_of(run, at) for run in runs]
    base = outcomes_of(runs[0].folder, steps[0]) if steps[0] is not None else []
    before = score_metrics(base) if len(runs) > 1 else {}  # once: its intervals are most of the time a comparison takes
    found = []
    for run, step in list(zip(runs, steps, strict=True))[1:]:
        if not base or step is None or steps[0] is None:
            lacking = run if step is None else runs[0]
            found.append(Paired(run.name, step, (), f"{lacking.name} has no evaluation with scores by prompt"))
            continue
        own = outcomes_of(run.folder, step)
        found.append(_paired(run.name, step, own, base, before))
    return found


def _paired(
    name: str, step: int, own: Sequence[Outcome], base: Sequence[Outcome], before: Mapping[str, float]
) -> Paired:
    row = score_metrics(own, base)
    known = {(each.place, each.prompt_id): each.scores for each in base}
    differences = []
    for key in (key for key in row if key.endswith("/gain")):
        reward = key.removeprefix("eval/").removesuffix("/gain")
        ends = [number(row.get(f"eval/{reward}/{end}")) for end in ("low", "high", "gain", "gain_low", "gain_high")]
        held = Held(number(row.get(f"eval/{reward}")), *ends)
        pairs = sum(_is_pair(each, known.get((each.place, each.prompt_id)), reward) for each in own)
        differences.append(Difference(reward, held.mean, number(before.get(f"eval/{reward}")), held, pairs))
    problem = "" if differences else "no prompt has scores in both"
    return Paired(name, step, tuple(differences), problem)


def _is_pair(outcome: Outcome, other: Mapping[str, float | None] | None, reward: str) -> bool:
    plain = reward.removeprefix(f"{outcome.set}/") if outcome.set else reward
    named = f"{outcome.set}/{plain}" if outcome.set else plain
    both = outcome.scores.get(plain), (other or {}).get(plain)
    return named == reward and None not in both


def _step_of(run: Run, at: int | None) -> int | None:
    steps = [step for step in evaluated_steps(run.folder) if at is None or step <= at]
    return steps[-1] if steps else None


def noise_note(runs: Sequence[Run]) -> str:
    """Whether the runs' held-out samples are of the same prompts and noise, and if not, by which fields they differ."""
    fields: list[tuple[str, ...]] = [
        ("evaluation", "path"),
        ("evaluation", "seed"),
        ("evaluation", "num_inference_steps"),
        ("policy", "type"),
    ]
    differing = [".".join(path) for path in fields if len({_word(run.setting(*path)) for run in runs}) > 1]
    if not differing:
        return "Same prompt, same noise: the runs evaluate the same file with the same seed."
    return (
        f"The samples may differ for another reason than training: {', '.join(differing)} is not the same in all runs."
    )


def _word(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def side_by_side(runs: Sequence[Run], at: int | None) -> tuple[list[Card], list[str]]:
    """A card per prompt with each run's sample, after step `at` or the newest before it; and the runs that kept none."""
    columns, without = [], []
    for run in runs:
        steps = [step for step in steps_of(run.folder) if at is None or step <= at]
        if steps:
            columns.append((f"{run.name}, step {steps[-1]}", run.name, run.folder, records_of(run.folder, steps[-1])))
        else:
            without.append(run.name)
    return cards(columns), without
