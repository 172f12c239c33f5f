"""GenEval's metadata file and a folder of images for it, in the benchmark's own layout or a flat one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.geneval.specification import Specification

_FLAT = re.compile(r"(\d+)[_.](\d+)\.(?:png|jpe?g|webp)", re.IGNORECASE)
_SAMPLE = re.compile(r"(\d+)\.(?:png|jpe?g|webp)", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """Line `index` (from 0) of the metadata file."""

    index: int
    prompt: str
    metadata: Mapping[str, Any]
    specification: Specification


@dataclass(frozen=True)
class Place:
    """Image number `image` of row `index`, and its file."""

    index: int
    image: int
    path: Path


def read_rows(path: Path) -> list[Row]:
    """The rows of a file such as evaluation_metadata.jsonl. Raises ValueError naming the first wrong line, OSError."""
    rows: list[Row] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        if not line.strip():
            continue
        try:
            metadata = json.loads(line)
            if not isinstance(metadata, dict):
                raise ValueError(f"a line is an object, not {type(metadata).__name__}")
            rows.append(Row(len(rows), str(metadata.get("prompt", "")), metadata, Specification.read(metadata)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number + 1}: {error}") from error
    if not rows:
        raise ValueError(f"{path}: holds no row")
    return rows


def find_images(folder: Path, rows: list[Row]) -> tuple[list[Place], list[str]]:
    """The images of the rows, in order, and what does not fit.

    Two layouts, which count rows from 0: `00012/samples/0003.png`, as GenEval's own scripts write, or `12_3.png`. An
    evaluation of our trainer writes `12.3.png`.

    Raises ValueError when there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"--images {folder}: there is no such folder")
    found, strangers = [], []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name.isdigit():
            samples = path / "samples"
            for sample in sorted(samples.iterdir()) if samples.is_dir() else ():
                if match := _SAMPLE.fullmatch(sample.name):
                    found.append(Place(int(path.name), int(match[1]), sample))
        elif match := _FLAT.fullmatch(path.name):
            found.append(Place(int(match[1]), int(match[2]), path))
        elif path.is_file():
            strangers.append(path.name)
    known = [place for place in found if place.index < len(rows)]
    if not known:
        raise ValueError(f"--images {folder}: no image such as 00000/samples/0000.png or 0_0.png belongs to a row")
    missing = len(rows) - len({place.index for place in known})
    notes = {
        f"{len(found) - len(known)} images belong to no row of the metadata file": len(found) - len(known),
        f"{len(strangers)} files are not named like images, such as {''.join(strangers[:1])}": len(strangers),
        f"{missing} of {len(rows)} rows have no image": missing,
    }
    return sorted(known, key=lambda place: (place.index, place.image)), [note for note, count in notes.items() if count]
