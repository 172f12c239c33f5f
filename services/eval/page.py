"""page.html: one file without scripts or outside references, safe to open whatever the prompts and the judge say."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from services.eval.dimensions import DIMENSIONS, PRIMARIES
from services.eval.images import open_image
from services.eval.prompts import Prompt
from services.eval.store import Plan, Record
from services.eval.table import MACRO, MICRO, Row
from services.kit.models.pixels import to_rgb

THUMBNAIL_SIDE = 224
_QUALITY = 72
_LISTED = 200  # images without verdicts that are listed one by one
_SUB_CLASS = {dimension.name: f"s{number}" for number, dimension in enumerate(DIMENSIONS)}
_PRIMARY_CLASS = {name: f"p{number}" for number, name in enumerate(PRIMARIES)}


@dataclass(frozen=True)
class Verdict:
    """One test point of a card."""

    name: str
    description: str
    reason: str
    passed: bool


@dataclass(frozen=True)
class Card:
    """An image with its verdicts; `classes` are what the filter goes by. `missing` says why there are no verdicts."""

    label: str
    prompt: str
    uri: str | None
    classes: str
    failed: tuple[Verdict, ...]
    passed: tuple[Verdict, ...]
    missing: str


@dataclass(frozen=True)
class Choice:
    """An entry of the filter: its class, and how many images ask for it."""

    value: str
    label: str


def render_page(
    plan: Plan, records: Sequence[Record], rows: Sequence[Row], failures: Mapping[str, int], max_images: int
) -> str:
    """The page of a run as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    prompts = {prompt.index: prompt for prompt in plan.prompts}
    shown = choose(records, max_images)
    by_name = {(row.kind, row.name): row for row in rows}
    primaries = [row for row in rows if row.kind == "primary"]
    return environment.get_template("page.html.j2").render(
        title=Path(plan.images_dir).name or plan.images_dir,
        plan=plan,
        macro=by_name["overall", MACRO],
        micro=by_name["overall", MICRO],
        macro_note=_macro_note(len(primaries)),
        official=_official(by_name["overall", MACRO]),
        dimensions=[(row, _parts(row, rows)) for row in primaries],
        images=len(records),
        judged=sum(record.verdicts is not None for record in records),
        failures=failures,
        missing=[record for record in records if record.verdicts is None][:_LISTED],
        failing=sum(_shows_failure(record) for record in records),
        cards=[_card(record, prompts[record.index], Path(plan.images_dir)) for record in shown],
        choices=[(_choice(row), [_choice(part) for part in _parts(row, rows)]) for row in primaries],
        percent=_percent,
    )


def choose(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` records in their order: those with a failed point or without verdicts first, evenly spread."""
    failing = [record for record in records if _shows_failure(record)]
    others = [record for record in records if not _shows_failure(record)]
    chosen = _spread(failing, count)
    chosen += _spread(others, count - len(chosen))
    return sorted(chosen, key=lambda record: (record.index, record.image))


def thumbnail(path: Path) -> str | None:
    """A small JPEG as a data URI; None when the file is gone or no image."""
    try:
        image = to_rgb(open_image(path.read_bytes()))
    except (OSError, ValueError):
        return None
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _official(row: Row) -> Row:
    """The row with the official reading in place of ours."""
    return replace(
        row,
        correct=row.official_correct,
        judged=row.official_judged,
        accuracy=row.official_accuracy,
        low=row.official_low,
        high=row.official_high,
    )


def _macro_note(count: int) -> str:
    if count == len(PRIMARIES):
        return "Answers as the benchmark's own tool reads them, each dimension the same: what the leaderboard prints."
    return f"Over {count} of {len(PRIMARIES)} dimensions, so not comparable with the leaderboard's."


def _shows_failure(record: Record) -> bool:
    return record.verdicts is None or 0 in record.verdicts


def _spread(records: Sequence[Record], count: int) -> list[Record]:
    if len(records) <= count:
        return list(records)
    return [records[place * len(records) // count] for place in range(max(0, count))]


def _parts(primary: Row, rows: Sequence[Row]) -> list[Row]:
    """The sub dimensions of a primary one that has several."""
    return [row for row in rows if row.kind == "sub" and row.name.startswith(f"{primary.name} - ")]


def _choice(row: Row) -> Choice:
    classes = _PRIMARY_CLASS if row.kind == "primary" else _SUB_CLASS
    return Choice(classes[row.name], f"{row.name} ({row.judged - row.correct} failed of {row.judged})")


def _card(record: Record, prompt: Prompt, folder: Path) -> Card:
    verdicts = record.verdicts or ()
    reasons = record.reasons or ("",) * len(verdicts)
    given = [
        Verdict(point.name, point.description, reason, bool(verdict))
        for point, verdict, reason in zip(prompt.points, verdicts, reasons, strict=False)
    ]
    classes = set()
    for position, point in enumerate(prompt.points):
        asked = {_SUB_CLASS[point.dimension.name], _PRIMARY_CLASS[point.dimension.primary]}
        classes |= asked
        if not verdicts or not verdicts[position]:
            classes |= {f"f{name}" for name in asked} | {"f"}
    return Card(
        label=f"{record.index}, image {record.image}",
        prompt=prompt.text,
        uri=thumbnail(folder / record.file),
        classes=" ".join(sorted(classes)),
        failed=tuple(each for each in given if not each.passed),
        passed=tuple(each for each in given if each.passed),
        missing="" if verdicts else f"{record.code}: {record.message}",
    )


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"
