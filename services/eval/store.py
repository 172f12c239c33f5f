"""A run's folder: `run.json` says what is asked, `results.jsonl` what was answered.

A result is known by its key, a hash of all its verdicts depend on: the image's bytes, the prompt with its test points,
the wording, the model. So a run that was cut off asks only for what it has no verdicts on, a replaced image is judged
anew, and nothing is judged twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services.eval.judge import Judgement, Missing
from services.eval.prompts import Prompt, read_points

PLAN, RESULTS = "run.json", "results.jsonl"


class RunFolderError(ValueError):
    """The folder holds no run, or another process is writing to it."""


@dataclass(frozen=True)
class Place:
    """Image number `image` of prompt `index`, its file, and the key of its result."""

    index: int
    image: int
    file: str
    key: str


@dataclass(frozen=True)
class Plan:
    """All a run asks. `revision` is the judge's method; `notes` say what could not be asked."""

    model: str
    revision: str
    prompts_file: str
    images_dir: str
    prompts: tuple[Prompt, ...]
    places: tuple[Place, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """What became of an image. `verdicts` is None where there are none; `code` and `message` then say why."""

    key: str
    index: int
    image: int
    file: str
    verdicts: tuple[int, ...] | None
    reasons: tuple[str, ...] = ()
    resampled: bool = False
    code: str | None = None
    message: str | None = None
    answer: str = ""

    @classmethod
    def of(cls, place: Place, result: Judgement | Missing) -> Self:
        where = (place.key, place.index, place.image, place.file)
        if isinstance(result, Missing):
            return cls(*where, None, code=result.code.value, message=result.message, answer=result.answer)
        return cls(*where, result.verdicts, result.reasons, result.resampled, answer=result.answer)


def result_key(image_sha256: str, prompt: Prompt, model: str, revision: str) -> str:
    points = [(point.name, point.description) for point in prompt.points]
    parts = [image_sha256, prompt.text, points, prompt.language, model, revision]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def write_plan(folder: Path, plan: Plan) -> None:
    prompts = [
        {
            "index": prompt.index,
            "prompt": prompt.text,
            "testpoints": [point.name for point in prompt.points],
            "descriptions": [point.description for point in prompt.points],
        }
        for prompt in plan.prompts
    ]
    tree = {**asdict(plan), "prompts": prompts}
    write_atomic(folder / PLAN, json.dumps(tree, ensure_ascii=False, indent=1) + "\n")


def read_plan(folder: Path) -> Plan:
    """Raises RunFolderError when the folder holds no run."""
    try:
        tree = json.loads((folder / PLAN).read_text("utf-8"))
        prompts = [
            Prompt(each["index"], each["prompt"], *read_points(each["testpoints"], each["descriptions"]))
            for each in tree["prompts"]
        ]
        places = [Place(**each) for each in tree["places"]]
        known = {"prompts": tuple(prompts), "places": tuple(places), "notes": tuple(tree["notes"])}
        return Plan(**{**tree, **known})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{folder} holds no run ({PLAN}: {error}); make one with `python -m services.eval run --out {folder} ...`"
        ) from error


def read_records(folder: Path) -> tuple[dict[str, Record], int]:
    """Results by key, one with verdicts before one without, else the last; and how many lines could not be read.

    A process that was killed may leave a last line that is cut.
    """
    records: dict[str, Record] = {}
    damaged = 0
    path = folder / RESULTS
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for line in lines:
        if not line.strip():
            continue
        try:
            record = _to_record(json.loads(line))
        except (ValueError, KeyError, TypeError):
            damaged += 1
            continue
        if record.verdicts is not None or records.get(record.key, record).verdicts is None:
            records[record.key] = record
    return records, damaged


class ResultLog:
    """Appends records, each on disk before `append` returns. One process at a time. Raises RunFolderError."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / RESULTS).open("a+b")
        self._lock = threading.Lock()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise RunFolderError(f"another run is writing to {folder}: wait for it, or choose another --out") from error
        if self._file.tell() and not self._ends_with_newline():
            self._file.write(b"\n")  # after a line that was cut

    def append(self, record: Record) -> None:
        line = json.dumps(asdict(record), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _ends_with_newline(self) -> bool:
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) == b"\n"


def write_atomic(path: Path, text: str) -> None:
    """Replace a UTF-8 file as a whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        temporary.write_text(text, "utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _to_record(tree: Mapping[str, Any]) -> Record:
    verdicts: Sequence[int] | None = tree["verdicts"]
    if verdicts is not None and any(verdict not in (0, 1) for verdict in verdicts):
        raise ValueError(f"verdicts {verdicts}")
    known = {"verdicts": None if verdicts is None else tuple(verdicts), "reasons": tuple(tree["reasons"])}
    return Record(**{**tree, **known})
