"""`run`: judge a folder of images by GenEval's rules. Stops and resumes anywhere."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from services.geneval.prompts import Place, Row, find_images, read_rows
from services.geneval.scorer import GenevalScorer
from services.geneval.settings import RunSettings
from services.geneval.table import Judged, Line, tabulate
from services.kit.scorer import Item, Result, Score

RESULTS, TABLE_CSV, TABLE_JSON = "results.jsonl", "table.csv", "table.json"


@dataclass(frozen=True)
class Report:
    """The table, and the records of all images: key, index, image, file, correct (None with code and message)."""

    lines: list[Line]
    records: list[dict[str, Any]]

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [record for record in self.records if record["correct"] is None]


def run(settings: RunSettings, scorer: GenevalScorer) -> Report:
    """Judge what has no verdict yet, and write results.jsonl, table.csv and table.json; also when interrupted.

    A verdict is known by a hash of the image's bytes, its row, and the scorer's revision, so a replaced image or another
    detector is judged anew, and nothing twice.

    Raises ValueError (a file or folder cannot be used), SourceError, OSError, KeyboardInterrupt.
    """
    rows = read_rows(settings.prompts)
    places, notes = find_images(settings.images, rows)
    for note in notes:
        print(note, file=sys.stderr)
    settings.out.mkdir(parents=True, exist_ok=True)
    revision = scorer.rewards["geneval"].revision
    keys = [_key(place, rows[place.index], revision) for place in places]
    known = _read(settings.out / RESULTS)
    todo = [(key, place) for key, place in zip(keys, places, strict=True) if known.get(key, {}).get("correct") is None]
    print(f"{len(places)} images, {len(places) - len(todo)} judged before", file=sys.stderr)
    try:
        if todo:
            scorer.load()
            with (settings.out / RESULTS).open("a", encoding="utf-8") as log:
                for record in _judge(scorer, rows, todo):
                    known[record["key"]] = record
                    log.write(json.dumps(record, ensure_ascii=False) + "\n")
                    log.flush()
    finally:
        report = _report(settings, rows, places, [known.get(key) for key in keys], revision)
    return report


def _judge(scorer: GenevalScorer, rows: Sequence[Row], todo: Sequence[tuple[str, Place]]) -> Iterator[dict[str, Any]]:
    for key, place in tqdm(todo, desc="judging", unit="image", dynamic_ncols=True):
        row = rows[place.index]
        record = {"key": key, "index": place.index, "image": place.image, "file": str(place.path)}
        try:
            with Image.open(place.path) as opened:
                image = ImageOps.exif_transpose(opened)
                image.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            yield record | {"correct": None, "code": "bad_input", "message": f"cannot be read: {error}"}
            continue
        [result] = scorer.score("geneval", [Item(key, row.prompt, (image,), metadata=row.metadata)])
        yield record | _verdict(result)


def _verdict(result: Result) -> dict[str, Any]:
    if isinstance(result, Score):
        return {"correct": bool(result.value), "components": dict(result.components), "details": dict(result.details)}
    return {"correct": None, "code": result.code.value, "message": result.message}


def _key(place: Place, row: Row, revision: str) -> str:
    image = hashlib.sha256(place.path.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([image, row.metadata, revision], sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The newest record of each key. A line that was cut off while it was written is passed over."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
            found[record["key"]] = record
        except (ValueError, KeyError, TypeError):
            print(f"{path}: a line is cut off; that image is judged again", file=sys.stderr)
    return found


def _report(
    settings: RunSettings,
    rows: Sequence[Row],
    places: Sequence[Place],
    records: Sequence[dict[str, Any] | None],
    revision: str,
) -> Report:
    missing: dict[str, Any] = {
        "correct": None,
        "code": "not_asked_yet",
        "message": "the run stopped before it came to this image",
    }
    whole: list[dict[str, Any]] = [
        (record or missing) | {"index": place.index, "image": place.image, "file": str(place.path)}
        for place, record in zip(places, records, strict=True)
    ]
    images = [Judged(each["index"], rows[each["index"]].specification.tag, each["correct"]) for each in whole]
    lines = tabulate(images, resamples=settings.resamples, seed=settings.seed)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(asdict(lines[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    _write(settings.out / TABLE_CSV, buffer.getvalue())
    tree = {
        "revision": revision,
        "prompts_file": str(settings.prompts.resolve()),
        "bootstrap": {"resamples": settings.resamples, "seed": settings.seed, "unit": "prompt", "level": 0.95},
        "rows": [asdict(line) for line in lines],
        "failed_images": [
            {key: each[key] for key in ("index", "image", "file", "code", "message")}
            for each in whole
            if each["correct"] is None
        ],
    }
    _write(settings.out / TABLE_JSON, json.dumps(tree, ensure_ascii=False, indent=1) + "\n")
    return Report(lines, whole)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)
