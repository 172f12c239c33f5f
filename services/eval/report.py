"""From a run's folder to its table (CSV, JSON) and page."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from services.eval.dimensions import PRIMARIES
from services.eval.page import render_page
from services.eval.parsing import official_verdicts
from services.eval.prompts import Prompt
from services.eval.settings import ReportOptions
from services.eval.store import Place, Plan, Record, read_plan, read_records, write_atomic
from services.eval.table import MACRO, Difference, Judged, Row, tabulate

TABLE_CSV, TABLE_JSON, PAGE = "table.csv", "table.json", "page.html"
_NAME_WIDTH = 50  # the longest dimension, indented
_NOT_ASKED = "not_asked_yet"  # a run that was stopped has not come to it


@dataclass(frozen=True)
class Results:
    """A run's images with what is known of each, in the order of the plan."""

    plan: Plan
    records: tuple[Record, ...]
    images: tuple[Judged, ...]

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.verdicts is None]

    @property
    def failures(self) -> dict[str, int]:
        """How many images have no verdicts, by reason."""
        return dict(Counter(record.code or "unknown" for record in self.failed).most_common())


@dataclass(frozen=True)
class Report:
    results: Results
    rows: list[Row]


def load_results(folder: Path) -> Results:
    """Raises RunFolderError when the folder holds no run."""
    plan = read_plan(folder)
    known, _ = read_records(folder)
    prompts = {prompt.index: prompt for prompt in plan.prompts}
    records = tuple(_record_for(place, known.get(place.key), len(prompts[place.index].points)) for place in plan.places)
    images = tuple(_judged(record, prompts[record.index]) for record in records)
    return Results(plan, records, images)


def write_report(folder: Path, options: ReportOptions) -> Report:
    """Write table.csv, table.json and page.html of a run, finished or not. Raises RunFolderError."""
    results = load_results(folder)
    rows = tabulate(results.images, resamples=options.resamples, seed=options.seed)
    write_atomic(folder / TABLE_CSV, _as_csv(asdict(row) for row in rows))
    write_atomic(folder / TABLE_JSON, json.dumps(_tree(results, rows, options), ensure_ascii=False, indent=1) + "\n")
    write_atomic(folder / PAGE, render_page(results.plan, results.records, rows, results.failures, options.page_images))
    return Report(results, rows)


def official_layout(images: Iterable[Judged]) -> dict[str, dict[str, dict[str, float]]]:
    """The two blocks of the benchmark's own result file: names as in the prompt file, accuracies rounded to 4 digits.

    As there, verdicts are those that the benchmark's own tool reads, images without any are left out, and an English primary name with parts keeps the space before its
    hyphen ("Attribute ").
    """
    totals: dict[str, dict[str, list[int]]] = {"primary_dimensions": {}, "sub_dimensions": {}}
    for each in images:
        for point, verdict in zip(each.prompt.points, each.official or (), strict=False):
            for block, name in (
                ("primary_dimensions", point.name.partition("-")[0]),
                ("sub_dimensions", point.name),
            ):
                total = totals[block].setdefault(name, [0, 0])
                total[0] += verdict
                total[1] += 1
    return {
        block: {
            name: {"correct": correct, "total": total, "accuracy": round(correct / total, 4)}
            for name, (correct, total) in names.items()
        }
        for block, names in totals.items()
    }


def table_text(rows: Sequence[Row]) -> str:
    """The table for a terminal, in percent."""
    head = f"{'':{_NAME_WIDTH}}{'accuracy':>9}{'95 % interval':>17}{'judged / asked':>16}"
    lines = [f"{head}{'official':>10}{'judged':>8}"]
    for row in rows:
        interval = "-" if row.low is None else f"{_percent(row.low)} to {_percent(row.high)}"
        name = ("  " if row.kind == "sub" else "") + row.name
        ours = f"{_percent(row.accuracy):>9}{interval:>17}{f'{row.judged} / {row.asked}':>16}"
        lines.append(f"{name:{_NAME_WIDTH}}{ours}{_percent(row.official_accuracy):>10}{row.official_judged:>8}")
    lines.append(
        f"official: the same answers as the benchmark's own tool reads them; the leaderboard's number is its {MACRO}"
    )
    primaries = sum(row.kind == "primary" for row in rows)
    if not _is_whole(rows):
        lines.append(
            f"only {primaries} of {len(PRIMARIES)} primary dimensions are asked: no number for the leaderboard"
        )
    return "\n".join(lines)


def comparison_text(rows: Sequence[Difference]) -> str:
    """The differences for a terminal, in percentage points."""
    lines = [f"{'':{_NAME_WIDTH}}{'A':>8}{'B':>8}{'B - A':>9}{'95 % interval':>20}{'points':>8}"]
    for row in rows:
        interval = "-" if row.low is None else f"{_signed(row.low)} to {_signed(row.high)}"
        name = ("  " if row.kind == "sub" else "") + row.name
        ends = f"{_percent(row.a):>8}{_percent(row.b):>8}{_signed(row.change):>9}"
        lines.append(f"{name:{_NAME_WIDTH}}{ends}{interval:>20}{row.points:>8}")
    return "\n".join(lines)


def _record_for(place: Place, record: Record | None, num_points: int) -> Record:
    """The place's own record: identical images of one prompt share a result."""
    where = (place.key, place.index, place.image, place.file)
    if record is None:
        return Record(*where, None, code=_NOT_ASKED, message="the run stopped before it came to this image")
    if record.verdicts is not None and len(record.verdicts) != num_points:
        message = f"results.jsonl has {len(record.verdicts)} verdicts for {num_points} test points"
        return Record(*where, None, code="damaged", message=message)
    return replace(record, index=place.index, image=place.image, file=place.file)


def _judged(record: Record, prompt: Prompt) -> Judged:
    return Judged(prompt, record.image, record.verdicts, official_verdicts(record.answer, len(prompt.points)))


def _as_csv(rows: Iterable[dict[str, Any]]) -> str:
    lines = list(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _tree(results: Results, rows: Sequence[Row], options: ReportOptions) -> dict[str, Any]:
    plan = results.plan
    return {
        "model": plan.model,
        "revision": plan.revision,
        "prompts_file": plan.prompts_file,
        "images": {"asked": len(plan.places), "judged": len(plan.places) - len(results.failed)},
        "failures": results.failures,
        "notes": list(plan.notes),
        "bootstrap": {"resamples": options.resamples, "seed": options.seed, "unit": "prompt", "level": 0.95},
        "leaderboard": {"reading": "official", "overall": rows[0].official_accuracy, "comparable": _is_whole(rows)},
        "rows": [asdict(row) for row in rows],
        "failed_images": [
            {"index": each.index, "image": each.image, "file": each.file, "code": each.code, "message": each.message}
            for each in results.failed
        ],
        **official_layout(results.images),
    }


def _is_whole(rows: Sequence[Row]) -> bool:
    """Whether all primary dimensions are asked: a mean over fewer is not the leaderboard's."""
    return sum(row.kind == "primary" for row in rows) == len(PRIMARIES)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f}"
