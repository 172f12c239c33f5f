"""The folder that generated pictures and texts are written to.

| file | what |
|---|---|
| settings.json | what was asked for: another start with other settings is refused |
| made.<rank>.jsonl | a line a sample: its prompt, texts and images in the order in which they were made |
| images/<name>.png | the last image of a sample; those before it are <name>.1.png, <name>.2.png, ... |
| scores.<rank>.jsonl | a line a scored sample, with --score |
| .lock | held while a start works there |

A line is written after its images, so that a sample is there as a whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.config import ConfigError
from trainer.config.base import UserError
from trainer.evaluation.artefacts import images
from trainer.policies.generation import Made, Written
from trainer.records.recorder import write_atomic
from trainer.types import Prompt

# What may be there before the first sample is.
_OURS = re.compile(r"^(\.lock|images|logs|settings\.json|\.?settings\.json\..*|(made|scores)\.\d+\.jsonl)$")
_PLAIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


class OutputError(UserError):
    """The folder cannot be written; the message names it and the remedy."""


class OutputFolder:
    """What was made, kept as it is made.

    Args:
        folder: made where it is missing.
        settings: all that decides what is made.
        rank: of this process; each writes lines of its own.

    Raises:
        ConfigError: the folder holds something else, or what other settings made.
        OutputError: it cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        self.folder, self._rank = folder, rank
        with self._writing():
            (folder / "images").mkdir(parents=True, exist_ok=True)
            self._begin(json.loads(json.dumps(settings)))
            for kind in ("made", "scores"):
                _cut_torn_line(self._lines(kind))

    def made(self) -> dict[str, dict[str, Any]]:
        """The lines of all samples that are there, by their id; of one whose images are gone, there is none."""
        return {
            row["id"]: row
            for row in self._rows("made")
            if all((self.folder / name).is_file() for name in _images_of(row))
        }

    def scored(self) -> dict[str, dict[str, Any]]:
        """The lines of all samples that were scored, by their id."""
        return {row["id"]: row for row in self._rows("scores")}

    def add(self, name: str, prompt: Prompt, made: Made) -> dict[str, Any]:
        """Write a sample, its images first; returns its line. Raises OutputError: it cannot be written."""
        steps: list[dict[str, Any]] = []
        stem, seen = stem_of(name), 0
        with self._writing():
            for step in made.steps:
                if isinstance(step, Written):
                    steps.append({step.purpose: step.text, **({} if step.finished else {"cut_off": True})})
                    continue
                seen += 1
                last = seen == len(made.images)
                steps.append({"image": self._save(step, stem if last else f"{stem}.{seen}")})
            row = {"id": name, "prompt_id": prompt.id, "prompt": prompt.text, "steps": steps}
            if prompt.source_images:
                row["source_images"] = list(prompt.source_images)
            self._append("made", row)
        return row

    def add_score(self, row: Mapping[str, Any]) -> None:
        """Write what the rewards said of a sample. Raises OutputError: it cannot be written."""
        with self._writing():
            self._append("scores", row)

    def image(self, row: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
        """The last image of a line, if it has one."""
        names = _images_of(row)[-1:]
        return images.load(self.folder / "images", Path(names[0]).stem, 1) if names else ()

    def _begin(self, settings: Mapping[str, Any]) -> None:
        """Compare with what an earlier start was asked for, as far as it made anything."""
        path = self.folder / "settings.json"
        odd = sorted(each.name for each in self.folder.iterdir() if not _OURS.match(each.name))
        if odd and not path.is_file():
            raise ConfigError(
                f"{self.folder} holds {odd[0]} and nothing of an earlier start; give a new folder, so that nothing of yours is written over"
            )
        if not any(each.stat().st_size for each in self.folder.glob("made.*.jsonl")):
            if self._rank == 0:
                write_atomic(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{self.folder} has samples and no settings.json; give a new folder") from None
        except ValueError as error:
            raise ConfigError(f"{path} is damaged ({error}); give a new folder") from error
        if not isinstance(before, dict):
            raise ConfigError(f"{path} holds no settings; give a new folder")
        for name in sorted(before.keys() | settings.keys()):
            if before.get(name) != settings.get(name):
                raise ConfigError(
                    f"{self.folder} was begun with {name} = {before.get(name)}, not {settings.get(name)}: give a new folder, or "
                    "the same settings to go on"
                )

    def _lines(self, kind: str) -> Path:
        return self.folder / f"{kind}.{self._rank}.jsonl"

    def _rows(self, kind: str) -> Iterator[dict[str, Any]]:
        for path in sorted(self.folder.glob(f"{kind}.*.jsonl")):
            # What stands behind the last line's end is a line that another rank writes now, or was killed in.
            for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ConfigError(
                        f"{path}:{number} is damaged ({error}); take the line out, and what it held is made again"
                    ) from error

    def _append(self, kind: str, row: Mapping[str, Any]) -> None:
        with self._lines(kind).open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _save(self, pixels_HWC: np.ndarray, stem: str) -> str:
        name = f"images/{stem}.png"
        temporary = self.folder / f"images/.{stem}.writing.png"
        with temporary.open("wb") as file:
            Image.fromarray(pixels_HWC).save(file, "PNG", compress_level=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / name)
        return name

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"the output folder {self.folder} cannot be written: {error.strerror or error}; make room or correct its owner, and the "
                "same command goes on, or give another folder"
            ) from error


def stem_of(name: str) -> str:
    """A file name for a sample's id: the id itself where it can be one, else its beginning and its hash."""
    plain = name.replace("#", "-")
    if _PLAIN.match(plain) and name.count("#") == 1:  # a#0#1 and a-0#1 would be one
        return plain
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-.")[:60]
    return f"{kept or 'sample'}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _images_of(row: Mapping[str, Any]) -> list[str]:
    return [step["image"] for step in row["steps"] if "image" in step]


def _cut_torn_line(path: Path) -> None:
    """Drop what a process that was killed left behind the last whole line."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
