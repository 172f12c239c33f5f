"""The pages: what each shows, put together from runs for the templates."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.records import keys
from trainer.records.numbers import percent
from trainer.records.progress import duration
from trainer.report.charts import figure, numbers_of
from trainer.runs import compare
from trainer.runs.axes import AXES, place_of
from trainer.runs.catalogue import Catalogue
from trainer.runs.look import Look, render
from trainer.runs.run import Run
from trainer.runs.run_charts import charts_of
from trainer.runs.samples import Card, cards, ordered, records_of, rewards_in, steps_of
from trainer.runs.state import newest_crash
from trainer.runs.table import ORDER, Cell, RunRow, cells, matching, rewards_of, row_of, sort
from trainer.runs.trouble import alarms_told, changed_scorers, last_warnings

ROWS_A_PAGE, CARDS_A_PAGE, MAX_STEPS = 200, 24, 6
_TITLES = {
    "name": "run",
    "state": "state",
    "step": "step",
    "time": "time",
    "alarms": "alarms",
    "failed": "failed scores",
    "written": "last row",
}
_PHASES = ("time/rollout", "time/reward_wait", "time/update", "time/evaluate", "time/checkpoint")
ORDERS = {
    "file": "as in the file",
    "worst": "worst first",
    "best": "best first",
    "changed": "most changed",
    "gained": "gained most",
    "lost": "lost most",
}


@dataclass(frozen=True)
class TableQuery:
    """What is asked of the table: words in the name, states, the column it is sorted by (`-` before it: falling)."""

    words: str = ""
    states: tuple[str, ...] = ()
    sort: str = "-written"
    page: int = 1

    @property
    def key(self) -> str:
        return self.sort.removeprefix("-")

    @property
    def falling(self) -> bool:
        return self.sort.startswith("-")


@dataclass(frozen=True)
class GalleryQuery:
    """What is asked of a gallery: words in prompts or answers, an order by a reward, the steps beside each other."""

    words: str = ""
    order: str = "file"
    reward: str = ""
    steps: tuple[int, ...] = ()
    page: int = 1


@dataclass(frozen=True)
class Column:
    key: str
    title: str
    href: str


def runs_page(catalogue: Catalogue, look: Look, query: TableQuery, *, every_row: bool = False) -> str:
    """The table of all runs, a part of it at a time; `every_row`: whole."""
    every = [row_of(run) for run in catalogue.runs()]
    found = sort(matching(every, query.words, query.states), query.key, falling=query.falling)
    size = len(found) or 1 if every_row else ROWS_A_PAGE
    pages = max(1, math.ceil(len(found) / size))
    query = replace(query, page=min(max(query.page, 1), pages))
    shown = found[size * (query.page - 1) :][:size]
    rewards, now = rewards_of(found), time.time() if look.live else None
    titles = _titles(rewards)

    def href(**change: Any) -> str:
        now_asked = {"q": query.words, "state": query.states, "sort": query.sort} | change
        return look.links.runs(**now_asked)

    def by(key: str) -> str:
        falling = not query.falling if key == query.key else key != "name"
        return href(sort=f"-{key}" if falling else key)

    keys_shown = ["name", "state", "step", *(f"eval/{n}" for n in rewards), "time", "alarms", "failed", "written"]
    columns = [Column(key, titles[key], by(key)) for key in keys_shown]
    counts = ", ".join(f"{n} {state}" for state in ORDER if (n := sum(row.state == state for row in every)))
    return render(
        "runs.html.j2",
        look,
        **_common(catalogue.root),
        query=query,
        counts=f"{len(every)} run{'' if len(every) == 1 else 's'}: {counts}." if every else "No run yet.",
        rows=[(row, cells(row, rewards, now)) for row in shown],
        columns=columns,
        titles=titles,
        states=ORDER,
        sorted_by=f"by {titles.get(query.key, query.key)}",
        pages=pages,
        page_href=lambda n: href(page=n),
        links_left=catalogue.links,
        unread=catalogue.unread(),
        most=compare.MAX_RUNS,
        newest=[run.name for run in compare.chosen(catalogue.runs(), [], 2)],
    )


def told_of(run: Run, now: float) -> dict[str, Any]:
    """A run's row as an event tells it: every cell that a page may have."""
    row = row_of(run)
    shown = [_plain(cell) for cell in cells(row, list(row.held), now)]
    return {"name": row.name, "state": row.state, "sentence": row.sentence, "cells": shown}


def _plain(cell: Cell) -> dict[str, Any]:
    order = cell.order if not isinstance(cell.order, float) or math.isfinite(cell.order) else "-inf"
    return {"key": cell.key, "text": cell.text, "fine": cell.fine, "kind": cell.kind, "order": order, "at": cell.at}


def run_page(run: Run, root: Path, look: Look, axis: str) -> str:
    """One run: result, failures and alarms, curves, phases, configuration."""
    with run.lock:
        row = row_of(run)
        rewards = list(row.held)
        sections = charts_of(run, axis)
        crash = newest_crash(run.folder)
        hardware = run.summary.get("hardware")
        drawn = {key for key in (*run.curves, *run.evaluations) if keys.sentence_of(key) is not None}
        glossary = {keys.sentence_of(key): key for key in sorted(drawn, reverse=True)}
        return render(
            "run.html.j2",
            look,
            **_common(root),
            row=row,
            cells=cells(row, rewards, time.time() if look.live else None),
            titles=_titles(rewards),
            axis=axis,
            axes=[(key, title) for key, title in AXES.items() if place_of(run, key) is not None],
            sections=[(section, [figure(chart, "h4") for chart in charts]) for section, charts in sections],
            joined=run.curves.width,
            phases=_phases(run),
            config_text=run.config_text,
            glossary=sorted((key, sentence) for sentence, key in glossary.items()),
            hardware=hardware if isinstance(hardware, str) else "",
            crash=crash if row.state == "failed" else None,
            flight_image=_flight_image(run, crash.file if crash else ""),
            alarms=alarms_told(run),
            failures=sorted((reward, code, count) for (reward, code), count in run.failed.items() if count),
            changes=changed_scorers(run.folder),
            logs=last_warnings(run.folder),
            has_samples=bool(steps_of(run.folder)),
            has_report=run.folder.changed_at("report.html") is not None,
        )


def charts_json(run: Run, axis: str) -> list[dict[str, Any]]:
    """The numbers of all charts of a run's page, for the script that is on it."""
    with run.lock:
        return [{"name": c.name, "numbers": numbers_of(c)} for _, charts in charts_of(run, axis) for c in charts]


def compare_page(
    runs: Sequence[Run], root: Path, look: Look, *, axis: str, more: Sequence[str], at: int | None, left_out: str
) -> str:
    """Several runs beside each other; the first is the reference."""
    rows = [row_of(run) for run in runs]
    rewards, now = rewards_of(rows), time.time()
    titles = _titles(rewards)
    shown = ("state", "step", *(f"eval/{name}" for name in rewards), "time", "alarms", "failed")
    table = [(row, [cell for cell in cells(row, rewards, now) if cell.key in shown]) for row in rows]
    paired = compare.paired(runs, at) if len(runs) > 1 else []
    base = [step for step in compare.evaluated_steps(runs[0].folder) if at is None or step <= at]
    names = [run.name for run in runs]
    found, unsampled = compare.side_by_side(runs, at)
    return render(
        "compare.html.j2",
        look,
        **_common(root),
        rows=table,
        columns=["run", *(titles[key] for key in shown)],
        titles=titles,
        first_href=lambda name: look.links.compare([name, *(each for each in names if each != name)]),
        paired=paired,
        base_step=base[-1] if base else None,
        differences=compare.config_differences(runs),
        axes=[(key, AXES[key]) for key in compare.common_axes(runs)],
        axis=axis,
        axis_title=AXES[axis],
        unplaced=[run.name for run in runs if place_of(run, axis) is None],
        keys=compare.keys_of(runs),
        more=more,
        figures=[figure(chart) for chart in compare.charts_of(runs, axis, more)],
        noise=compare.noise_note(runs),
        cards=found[:CARDS_A_PAGE],
        unsampled=unsampled,
        left_out=left_out,
    )


def gallery_page(
    run: Run, root: Path, look: Look, query: GalleryQuery, page_href: Callable[[int], str] | None = None
) -> str:
    """Held-out samples of a run, a card for each prompt, with its samples after some steps. Without `page_href` all cards are
    on one page."""
    every = steps_of(run.folder)
    steps = [step for step in every if step in query.steps][:MAX_STEPS] or spread(every)
    found = cards((_at(step), run.name, run.folder, records_of(run.folder, step)) for step in steps)
    rewards = rewards_in(found)
    reward = query.reward if query.reward in rewards else (rewards[0] if rewards else "")
    order = query.order if query.order in ORDERS else "file"
    kept: list[Card] = [card for card in found if card.has(query.words.casefold().split())]
    kept = ordered(kept, order, reward)
    size = CARDS_A_PAGE if page_href is not None else len(kept) or 1
    pages = max(1, math.ceil(len(kept) / size))
    page = min(max(query.page, 1), pages)
    told = ORDERS[order] if order == "file" or not reward else f"{ORDERS[order]} by {reward}"
    return render(
        "gallery.html.j2",
        look,
        **_common(root),
        name=run.name,
        query=replace(query, reward=reward, order=order, page=page),
        steps=steps,
        all_steps=every,
        rewards=rewards,
        orders=list(ORDERS.items()),
        told=told,
        cards=kept[size * (page - 1) :][:size],
        count=len(kept),
        pages=pages,
        page_href=page_href,
    )


def message_page(root: Path, look: Look, title: str, text: str, *, asks: bool = False) -> str:
    """A sentence, and a form that asks for the token."""
    return render("message.html.j2", look, **_common(root), title=title, text=text, asks=asks)


def spread(steps: Sequence[int], most: int = 3) -> list[int]:
    """The first step, the last, and some between them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(n * (len(steps) - 1) / (most - 1))] for n in range(most)]


def _titles(rewards: Sequence[str]) -> dict[str, str]:
    """What each column is called."""
    return _TITLES | {f"eval/{name}": f"held-out {name}" for name in rewards}


def _common(root: Path) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {"root": root.name, "written": now.strftime("%Y-%m-%d %H:%M UTC"), "now": f"{now.timestamp():.1f}"}


def _at(step: int) -> str:
    return "before" if step == 0 else f"step {step}"


def _phases(run: Run) -> list[tuple[str, str, float, str]]:
    """Name, time in words, and share of the whole, of each part of the run's time."""
    sums = {key.removeprefix("time/"): float(run.curves.sums(key).sum()) for key in _PHASES}
    sums["evaluate"], sums["checkpoint"] = run.sums["time/evaluate"], run.sums["time/checkpoint"]
    sums["other"] = max(0.0, run.sums["time/total"] - sums["rollout"] - sums["reward_wait"] - sums["update"])
    whole = sum(sums.values())
    return [(name, duration(s), s / whole, percent(s / whole)) for name, s in sums.items() if whole and s > 0]


def _flight_image(run: Run, record: str) -> str:
    name = record.removesuffix(".json") + ".png"
    return f"flight/{name}" if record and run.folder.changed_at("flight", name) is not None else ""


def event(changed: Sequence[Run], appeared: Sequence[str], unread: int) -> str:
    """What a page is told, as JSON."""
    now = time.time()
    told: Mapping[str, Any] = {
        "runs": [told_of(run, now) for run in changed],
        "appeared": list(appeared),
        "unread": unread,
    }
    return json.dumps(told, ensure_ascii=False, allow_nan=False)


def rows_of(catalogue: Catalogue) -> list[RunRow]:
    """Every run's row, for a download."""
    return [row_of(run) for run in catalogue.runs()]
