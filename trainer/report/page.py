"""Builds report.html: one file without scripts or outside references, safe to open whatever the prompts say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer.config import ConfigError
from trainer.config.policy import sections
from trainer.records import keys
from trainer.records.progress import duration
from trainer.records.recorder import write_atomic
from trainer.report.answers import build_answers
from trainer.report.evaluation import evaluation_part
from trainer.report.images import Gallery, build_gallery
from trainer.report.pairs import match_pairs, without_pairs
from trainer.report.plots import (
    PHASES,
    advantage_plots,
    failure_plots,
    hardware_plots,
    latency_plots,
    reward_plots,
    text_plots,
    time_plots,
    update_plots,
)
from trainer.report.run_folder import RunFolder, base_statement, evaluated_step, load_run, number, percent
from trainer.report.warnings import warnings

SHOWN_CARDS = 12  # the others are behind a fold
MAX_TABLE_ROWS = 40
_REVISION_LENGTH = 80  # characters; a judge's names all its settings
_FILES = {
    "config.yaml": "the resolved configuration of the newest start; training with it makes this run again",
    "starts": "the configuration of each start, by the step it went on from",
    "metrics.jsonl": "every number of this page, one JSON object a step",
    "summary.json": "the result in short",
    "rewards.json": "what scored each reward, and where that changed",
    "samples": "evaluation samples: images with what was read, answers with their prompts, and how they scored",
    "eval": "per evaluation every sample's scores, alarms, benchmark tables, and the last samples of benchmarks",
    "sight.json": "what a policy that reads images proved before its first step",
    "reference": "log-probabilities of given answers under the starting weights",
    "checkpoints": "weights, averaged weights and what an exact resume needs",
    "logs": "TensorBoard files and the logs of services that were started",
}


@dataclass(frozen=True)
class Headline:
    """A reward's held-out result. `verdict` is up, down, same, or unknown (there is only one evaluation)."""

    name: str
    before: str
    after: str | None
    change: str
    verdict: str
    tag: str
    warning: str


@dataclass(frozen=True)
class State:
    """Where the run stands. `kind` is finished, going, or stopped."""

    kind: str
    text: str
    detail: str


def build_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder, finished or not, and return its path. It is replaced as a whole.

    Raises:
        ConfigError: the folder is missing or holds no run, or the page cannot be written.
    """
    run = load_run(Path(run_dir))
    path = run.path / "report.html"
    page = render(run, datetime.now(UTC))
    try:
        write_atomic(path, page)
    except OSError as error:
        raise ConfigError(
            f"the report {path} cannot be written: {error.strerror}; correct the owner of {run.path}, free space, or move "
            f"what is in its place away"
        ) from error
    return path


def render(run: RunFolder, now: datetime) -> str:
    """The page of a run as HTML."""
    problems = list(run.problems)
    gallery, answers = build_gallery(run, problems), build_answers(run, problems)
    pairs, right, labels = match_pairs(answers, gallery), read_right(gallery), gallery.labels if gallery else ()
    answers, gallery = without_pairs(answers, gallery, pairs)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        name=str(run.setting("run_name", default=run.path.resolve().name)),
        headlines=headlines(run),
        state=state(run, now),
        sentence=sentence(run),
        facts=facts(run),
        how_evaluated=how_evaluated(run),
        warnings=warnings(run),
        control=bool(run.setting("rewards", "shuffle_control", default=False)),
        about_base=about_base(run),
        sight=[{name: str(each.get(name, "")) for name in ("check", "status", "sentence")} for each in run.sight],
        pairs=pairs,
        pair_labels=labels,
        gallery=gallery,
        answers=answers,
        writes=run.writes,
        shown_cards=SHOWN_CARDS,
        read_right=right,
        percent=percent,
        sections=[
            ("Rewards", _rewards_note(run), reward_plots(run)),
            ("Form and content", "What the reward is made of, how long answers are, and how sure.", text_plots(run)),
            ("Advantages", "What each reward tells the policy, and how often it is silent.", advantage_plots(run)),
            ("Update", "How far a step moves the policy.", update_plots(run)),
            ("Time", "Seconds of a step, and how many of them are waiting.", time_plots(run)),
            ("Hardware", "What the step asks of the device.", hardware_plots(run)),
            ("Reward latency", "From submitting a micro-batch to its answer.", latency_plots(run)),
        ],
        phases=phases(run),
        failures=failures(run),
        failure_plots=failure_plots(run),
        services=services(run),
        evaluations=evaluations(run),
        evaluation=evaluation_part(run),
        merged_steps=run.merged_steps,
        config_text=run.config_text,
        config_changes=[(step, change) for step, changes in run.config_changes for change in changes],
        glossary=keys.SENTENCES,
        files=[(name, text) for name, text in _FILES.items() if (run.path / name).exists()],
        problems=problems,
        built=now.strftime("%Y-%m-%d %H:%M UTC"),
    )


def _rewards_note(run: RunFolder) -> str:
    changed = " Dotted: the configuration changed." if run.config_changes else ""
    return f"Higher is better. Thin: training rollouts. Thick: held-out evaluation.{changed}"


def headlines(run: RunFolder) -> list[Headline]:
    """Before and after on held-out prompts, a reward each; the summary's numbers, or the rows' while there is none."""
    trained_on = run.trained_on()
    found = []
    for name in run.rewards():
        first, last = run.ends(f"eval/{name}")
        ends = run.summary.get("eval") if isinstance(run.summary.get("eval"), Mapping) else {}
        before = _either(ends, "before", name, first[1] if first else math.nan)
        once = first is not None and last is None  # a summary then repeats the first as the newest
        after = math.nan if once else _either(ends, "after", name, last[1] if last else math.nan)
        if math.isnan(before):
            continue
        change, verdict = "", "unknown"
        if not math.isnan(after):
            change = f"{after - before:+.3f}".replace("-", "−")
            verdict = "same" if abs(after - before) < 0.0005 else "up" if after > before else "down"
            change += f" at step {last[0]}" if last else ""
        shares = [value for value in run.points(f"eval/{name}/valid_share")[1] if value < 1]
        found.append(
            Headline(
                name=name,
                before=_figure(before),
                after=None if math.isnan(after) else _figure(after),
                change=change,
                verdict=verdict,
                tag="trained on" if run.is_trained_on(name) else "never trained on" if trained_on else "",
                warning=f"In an evaluation only {percent(min(shares))} of the samples got a score." if shares else "",
            )
        )
    return found


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
        rate = _median(run.series.get(key, ([], []))[1])
        if not math.isnan(rate):
            found.append(("Throughput", f"{_rate(rate)} training {unit} a second"))
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


def read_right(gallery: Gallery | None) -> str:
    """How many images say what was asked for, before and after; empty where nothing was read."""
    if gallery is None or not gallery.readable:
        return ""
    counts = [
        f"{count} of {gallery.readable} {label}"
        for count, label in zip(gallery.read_right, gallery.labels, strict=True)
    ]
    return f"Read as asked: {', '.join(counts)}."


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


def phases(run: RunFolder) -> list[tuple[str, str, float]]:
    """Name, seconds in words and share of the whole, of each part of the run's time."""
    sums = {name: run.total(f"time/{name}") for name in (*PHASES, "evaluate", "checkpoint")}
    sums["other"] = max(0.0, run.total("time/total") - sum(sums[name] for name in PHASES))
    whole = sum(sums.values())
    return [(name, f"{seconds:.1f} s", seconds / whole) for name, seconds in sums.items() if whole and seconds > 0]


def failures(run: RunFolder) -> list[tuple[str, list[tuple[str, int]]]]:
    """Per reward the failed scores of training by code."""
    return [
        (name, [(code, int(run.total(keys.failed(name, code)))) for code in codes])
        for name, codes in run.failures().items()
    ]


def services(run: RunFolder) -> list[dict[str, str]]:
    """Per reward: what serves it, its latency over the whole run, cached scores."""
    table = []
    for name in run.rewards():
        p50, p95, worst = (run.series.get(keys.latency(name, q), ([], []))[1] for q in ("p50", "p95", "max"))
        table.append(
            {
                "name": name,
                "served": _served(run, name),
                "p50": _milliseconds(_median(p50)),
                "p95": _milliseconds(_median(p95)),
                "max": _milliseconds(max((value for value in worst if not math.isnan(value)), default=math.nan)),
                "cached": f"{run.total(f'cached/{name}'):.0f}",
            }
        )
    return table


def _served(run: RunFolder, name: str) -> str:
    """Service, reward and revision of a column."""
    column, scorer = run.setting("rewards", "columns", name, default={}), run.scorers.get(name, {})
    parts = [column.get("service"), column.get("reward")] if isinstance(column, Mapping) else []
    text = " / ".join(str(part) for part in parts if part) or "–"
    revision = str(scorer.get("revision") or "")
    if not revision:
        return text
    return f"{text}, revision {revision[:_REVISION_LENGTH]}{'…' if len(revision) > _REVISION_LENGTH else ''}"


def evaluations(run: RunFolder) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The held-out curves as a table: names, and per evaluated step the numbers; of many, MAX_TABLE_ROWS evenly spread."""
    names = [name for name in run.rewards() if f"eval/{name}" in run.series]
    rows = [row for row in run.rows if any(f"eval/{name}" in row for name in names)]
    if len(rows) > MAX_TABLE_ROWS:
        last = len(rows) - 1
        rows = [rows[round(n * last / (MAX_TABLE_ROWS - 1))] for n in range(MAX_TABLE_ROWS)]
    return names, [(evaluated_step(row), [_figure(number(row.get(f"eval/{name}"))) for name in names]) for row in rows]


def _either(ends: Any, end: str, name: str, otherwise: float) -> float:
    values = ends.get(end) if isinstance(ends, Mapping) else None
    value = number(values.get(name)) if isinstance(values, Mapping) else math.nan
    return otherwise if math.isnan(value) else value


def _figure(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _rate(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}".replace(",", "\N{NO-BREAK SPACE}")


def _milliseconds(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0f} ms"


def _median(values: Sequence[float]) -> float:
    found = sorted(value for value in values if not math.isnan(value))
    return found[len(found) // 2] if found else math.nan
