"""The first screen of the report: what was trained, where the run stands, and what held-out prompts say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer.config.policy import sections
from trainer.records.numbers import alike, interval, percent, plain
from trainer.records.progress import duration
from trainer.report.run_folder import RunFolder, base_statement
from trainer.report.source import number
from trainer.report.tables import failures, median

_LOSSES = ("heldout/loss", "heldout/ce", "heldout/mse")


@dataclass(frozen=True)
class Headline:
    """A held-out result in words.

    Attributes:
        verdict: up, down, same, or unknown where there is one evaluation only. A change is `same` where its interval holds 0.
        good: whether that is what training is for; None where nothing is known, or nothing moved.
        ends: the 95 % intervals before and after; empty where there are none.
    """

    name: str
    before: str
    after: str | None
    change: str
    verdict: str
    good: bool | None
    tag: str
    ends: str
    warning: str


@dataclass(frozen=True)
class State:
    """Where the run stands. `kind` is finished, going, or stopped."""

    kind: str
    text: str
    detail: str


def headlines(run: RunFolder) -> list[Headline]:
    """Before and after on held-out prompts, a reward each; then losses on held-out rows. The summary's numbers, or the rows' while
    there is none."""
    found = [_of_reward(run, name) for name in run.rewards()] + [_of_loss(run, key) for key in _LOSSES]
    return [each for each in found if each is not None]


def _of_reward(run: RunFolder, name: str) -> Headline | None:
    key = f"eval/{name}"
    first, last = run.ends(key)
    ends = run.summary.get("eval") if isinstance(run.summary.get("eval"), Mapping) else {}
    before = _either(ends, "before", name, first[1] if first else math.nan)
    once = first is not None and last is None  # a summary then repeats the first as the newest
    after = math.nan if once else _either(ends, "after", name, last[1] if last else math.nan)
    if math.isnan(before):
        return None
    trained_on = run.trained_on()
    shares = [value for value in run.rows.evaluations.values(f"{key}/valid_share") if value < 1]
    change, verdict = _change(run, key, before, after, last)
    intervals = [_interval(run, key, end) for end in (first, last) if end is not None]
    return Headline(
        name=name,
        before=plain(before),
        after=None if math.isnan(after) else plain(after),
        change=change,
        verdict=verdict,
        good={"up": True, "down": False}.get(verdict),
        tag="trained on" if run.is_trained_on(name) else "never trained on" if trained_on else "",
        ends="" if not all(intervals) else ", then ".join(intervals),
        warning=f"In an evaluation only {percent(min(shares))} of the samples got a score." if shares else "",
    )


def _of_loss(run: RunFolder, key: str) -> Headline | None:
    first, last = run.ends(key)
    if first is None:
        return None
    change, verdict = _change(run, key, first[1], last[1] if last else math.nan, last)
    name = {"ce": "cross-entropy of texts", "mse": "squared error of images"}.get(key.partition("/")[2], "loss")
    return Headline(
        name=f"{name}, held-out rows",
        before=plain(first[1]),
        after=None if last is None else plain(last[1]),
        change=change,
        verdict=verdict,
        good={"up": False, "down": True}.get(verdict),
        tag="lower is better",
        ends="",
        warning="",
    )


def _change(run: RunFolder, key: str, before: float, after: float, last: tuple[int, float] | None) -> tuple[str, str]:
    """The change in words, and which way it goes: by the interval of the paired gain, or by the means where there is none."""
    if math.isnan(after):
        return "", "unknown"
    at = f" at step {last[0]}" if last else ""
    gain = [] if last is None else [_value(run, f"{key}/{end}", last[0]) for end in ("gain", "gain_low", "gain_high")]
    if gain and all(map(math.isfinite, gain)):
        verdict = "up" if gain[1] > 0 else "down" if gain[2] < 0 else "same"
        told = interval(gain, sign=True) + at
        return (told if verdict != "same" else f"{told}: the interval holds 0"), verdict
    if abs(after - before) < 0.0005:
        return "no change", "same"
    return plain(after - before, sign=True) + at, "up" if after > before else "down"


def _interval(run: RunFolder, key: str, end: tuple[int, float]) -> str:
    ends = [_value(run, f"{key}/{name}", end[0]) for name in ("low", "high")]
    return "{} to {}".format(*alike([end[1], *ends])[1:]) if all(map(math.isfinite, ends)) else ""


def _value(run: RunFolder, key: str, step: int) -> float:
    """A key's number at a step; NaN where it has none."""
    evaluated = run.rows.evaluations
    return dict(zip(evaluated.steps, evaluated.values(key), strict=True)).get(step, math.nan)


def _either(ends: Any, end: str, name: str, otherwise: float) -> float:
    values = ends.get(end) if isinstance(ends, Mapping) else None
    value = number(values.get(name)) if isinstance(values, Mapping) else math.nan
    return otherwise if math.isnan(value) else value


def not_held_out(run: RunFolder) -> str:
    """What there is to say of a run without any held-out number: the course of its rewards and losses in training."""
    named = {f"reward/{name}/mean": name for name in run.rewards()}
    named |= {key: key for key in run.keys if key.startswith("loss/") and key not in ("loss/policy", "loss/kl")}
    told = []
    for key, name in named.items():
        first, last = run.ends(key)
        if first is not None:
            later = f", {plain(last[1])} at step {last[0]}" if last is not None else ""
            told.append(f"{name} {plain(first[1])} at step {first[0]}{later}")
    course = f" In training: {'; '.join(told)}." if told else ""
    return f"There is no held-out evaluation yet.{course}"


def state(run: RunFolder, now: datetime) -> State:
    """What happened to the run, from its summary, or from its last row while there is none."""
    of = f" of {run.max_steps}" if run.max_steps else ""
    stopped = run.summary.get("stopped")
    if stopped:
        return State("stopped", f"stopped after step {run.step}{of}", str(stopped))
    if run.summary.get("owed") is not None:
        text = "Its evaluation was left unfinished: starting again makes it."
        return State("going", f"saved at step {run.step}{of}", text)
    if run.summary and (run.max_steps is None or run.step >= run.max_steps):
        return State("finished", f"finished, {run.step} steps", "")
    if run.summary:
        return State("going", f"saved at step {run.step}{of}", "Training goes on from here when it is started again.")
    ago = ""
    if run.last_written is not None:
        ago = f" Its last row was written {duration(max(0.0, (now - run.last_written).total_seconds()))} ago."
    return State("going", f"step {run.step}{of}", f"The run has no summary yet: it is going on, or was cut off.{ago}")


def sentence(run: RunFolder) -> str:
    """What was trained, by what, on what, in a sentence."""
    if not run.config:
        return "The configuration of this run is missing."
    policy, estimator = run.setting("policy", "type", default="?"), run.setting("advantage", "type", default="?")
    per_step = run.setting("sampling", "prompts_per_step"), run.setting("sampling", "group_size")
    program, kind = run.setting("program", default="rl"), "answers" if run.writes else "images"
    if program == "supervised":
        given = "packs of texts and images" if run.setting("packed") else f"given {kind}"
        return f"The policy “{policy}” was trained on {given}."
    if program == "preference":
        return f"The policy “{policy}” was trained on pairs of {kind}, of which one is preferred."
    text = f"The policy “{policy}” was post-trained by RL ({str(estimator).upper()})"
    if all(per_step):
        text += f", {per_step[0]} prompts × {per_step[1]} {kind} a step"
    elif run.tasks:
        sizes = {"understand": "answers", "generate": "images"}
        groups = [
            f"{run.setting('sampling', 'tasks', t, 'group_size', default='?')} {sizes.get(t, t)}" for t in run.tasks
        ]
        text += f", {per_step[0]} prompts × {' and '.join(groups)} a step"
    weights = [f"{name} (weight {weight:g})" for name, weight in run.trained_on().items()]
    return f"{text}, on the reward{'s' if len(weights) > 1 else ''} {' and '.join(weights) or 'of no data set'}."


def facts(run: RunFolder) -> list[tuple[str, str]]:
    """Name and value of what one asks first."""
    trained, evaluated = run.total("time/total"), run.total("time/evaluate")
    found = [("Seed", str(run.setting("seed", default="unknown")))]
    wall = number(run.summary.get("wall_s"))
    wall = trained + evaluated if math.isnan(wall) else wall
    if wall:
        parts = f" ({duration(trained)} training, {duration(evaluated)} evaluation)" if trained and evaluated else ""
        found.append(("Duration", duration(wall) + parts))
    waited = run.total("time/reward_wait")
    for key, unit in (("images_per_s", "images"), ("tokens_per_s", "tokens")):
        rate = median(run.trained(key).values)
        if not math.isnan(rate):
            found.append(("Throughput", f"{plain(rate)} training {unit} a second"))
    if trained:
        found.append(("Waiting for rewards", f"{percent(waited / trained)} of training time"))
    failed = sum(count for _, codes in failures(run) for _, count in codes)
    found.append(("Failed scores", f"{failed} (masked, never a number)" if failed else "none"))
    for label, key in (("Hardware", "hardware"), ("Command", "command")):
        if isinstance(run.fact(key), str):
            found.append((label, run.fact(key)))
    return found


def how_evaluated(run: RunFolder) -> str:
    """What the big numbers stand on."""
    evaluation = run.setting("evaluation", default={})
    if not isinstance(evaluation, Mapping) or not (evaluation.get("path") or run.tasks):
        return ""
    count = run.fact("eval_prompts")
    prompts = f"{count} held-out prompts" if isinstance(count, int) else "held-out prompts"
    steps, seed = evaluation.get("num_inference_steps", "?"), evaluation.get("seed", "?")
    if run.tasks:
        how = f"of either task, drawn with the same random numbers each time (seed {seed})"
    elif run.writes:
        how = f"{_temperature(run)}, with the same random numbers each time (seed {seed})"
    else:
        how = f"sampled by the deterministic ODE in {steps} steps from the same noise each time (seed {seed})"
    average = number(run.setting("optim", "ema_decay"))
    weights = f", weights averaged over steps (decay {average:g})" if average > 0 else ""
    return f"Mean score on {prompts} that training never sees, {how}{weights}."


def _temperature(run: RunFolder) -> str:
    """How held-out answers are drawn, in words."""
    own, otherwise = run.setting("evaluation", "temperature"), run.setting("sampling", "temperature", default=1.0)
    temperature = number(otherwise if own is None else own)
    return "the likeliest token each time" if temperature == 0 else f"drawn at temperature {temperature:g}"


def about_base(run: RunFolder) -> str:
    """What the base is and how it was made, from the summary, or from beside or inside the checkpoint it came from."""
    about = run.fact("about_base")
    if isinstance(about, str) and about.strip():
        return about
    section = sections().get(str(run.setting("policy", "type")))
    if section is None:
        return "Where its weights come from is not recorded."
    named = [run.setting("policy", name) for name in section.starts_from]
    files = [each for each in named if isinstance(each, str)]
    if not files:
        return "The configuration names no file to start from: the weights were random."
    return base_statement(Path(files[-1])) or f"It is {' with '.join(files)}; how that was made is not recorded."
