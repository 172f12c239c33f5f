"""Builds report.html: one file that asks nobody for anything, safe to open whatever the prompts say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trainer.config import ConfigError
from trainer.records import keys
from trainer.records.recorder import write_atomic
from trainer.report.answers import build_answers
from trainer.report.assets import breakable, policy, report_style
from trainer.report.chart_list import charts_of
from trainer.report.charts import figure, script
from trainer.report.evaluation import evaluation_part
from trainer.report.images import build_gallery, read_right
from trainer.report.pairs import match_pairs, without_pairs
from trainer.report.result import about_base, facts, headlines, how_evaluated, not_held_out, sentence, state
from trainer.report.run_folder import RunFolder, load_run
from trainer.report.tables import evaluations, failures, phases, services, worst_excess
from trainer.report.warnings import warnings

SHOWN_CARDS = 12  # the others are behind a fold
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
_ABOUT = {
    "Form and content": "What the reward is made of, how long answers are, and how sure.",
    "Update": "How far a step moves the policy.",
    "Advantages": "What each reward tells the policy, and how often it is silent.",
    "Image statistics": "Numbers of the images themselves, without a model. A sudden turn is worth a look at the images.",
    "Time": "Seconds of a step, and how many of them are waiting.",
    "Hardware": "What the step asks of the device.",
    "Reward latency": "From submitting a micro-batch to its answer.",
    "Failures": "What failed was masked: it trained nothing and is in no mean.",
    "Other": "Whatever else the rows hold.",
}


@dataclass(frozen=True)
class Section:
    """Charts under a heading, with the place that the contents lead to."""

    name: str
    id: str
    note: str
    figures: tuple[Markup, ...]


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
    style, code = report_style(), script()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment.get_template("page.html.j2").render(
        style=Markup(style),
        script=Markup(code),
        policy=policy(style, code, "data:"),
        name=str(run.setting("run_name", default=run.path.resolve().name)),
        headlines=headlines(run),
        not_held_out=not_held_out(run),
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
        sections=sections(run),
        phases=phases(run),
        worst_excess=worst_excess(run),
        failures=failures(run),
        services=services(run),
        evaluations=evaluations(run),
        evaluation=evaluation_part(run),
        merged_steps=run.rows.curves.width,
        config_text=run.config_text,
        config_changes=[(step, change) for step, changes in run.config_changes for change in changes],
        glossary=keys.SENTENCES,
        files=[(name, text) for name, text in _FILES.items() if (run.path / name).exists()],
        problems=problems,
        built=now.strftime("%Y-%m-%d %H:%M UTC"),
    )


def away_from_its_folder(page: str) -> str:
    """A report as it is shown elsewhere: the files beside it are named there, and no links, which would lead nowhere."""
    return re.sub(
        r'<ul class="files">.*?</ul>',
        lambda files: re.sub(r'<a href="[^"]*">([^<]*)</a>', r"<code>\1</code>", files[0]),
        page,
        flags=re.DOTALL,
    )


def sections(run: RunFolder) -> list[Section]:
    """The charts of the run; those sections that say something without charts are there in any case."""
    drawn = {section: tuple(figure(each) for each in found) for section, found in charts_of(run)}
    named = [
        "Rewards",
        *(section for section in _ABOUT if section in drawn or section in ("Time", "Reward latency", "Failures")),
    ]
    changed = " Dotted: the configuration changed." if run.config_changes else ""
    about = {"Rewards": f"Higher is better. Thin: training rollouts. Thick: held-out evaluation.{changed}", **_ABOUT}
    return [Section(each, each.lower().replace(" ", "-"), about[each], drawn.get(each, ())) for each in named]
