"""The configuration of every start of a run, kept in its folder, and what changed from one to the next.

    config.yaml                     that of the newest start
    starts/0001_step_000000.yaml    that of each start, by its number and the step it went on from

A start that went back to an earlier step made what came after anew: of those before it, only the ones that began at
earlier steps still count.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.config.old_keys import OLD_SECTION, with_new_keys
from trainer.records.recorder import without_credentials, write_atomic

_NAME = re.compile(r"^(\d{4,})_step_(\d{6,})\.yaml$")
_MAY_CHANGE = ("max_steps", "resume", "logging", "checkpoint", "distributed")  # without making it another experiment


@dataclass(frozen=True)
class Start:
    """A start: the step it went on from, 0 for a fresh one, and its configuration as YAML."""

    number: int
    step: int
    text: str


@dataclass(frozen=True)
class Change:
    """A field with what it was and is, in words; a field that is in one of the two only `is not set` in the other."""

    field: str
    before: str
    after: str

    @property
    def makes_another_experiment(self) -> bool:
        """Whether what is trained changes, and not only for how long, where, or what is shown of it."""
        return not self.field.startswith(_MAY_CHANGE)

    def __str__(self) -> str:
        return f"{self.field}: {self.before} -> {self.after}"


def keep_start(run_dir: Path, step: int | None, config_yaml: str) -> None:
    """Keep the configuration of a start that was accepted; None: a fresh start, which makes all earlier ones void."""
    folder = run_dir / "starts"
    if step is None:
        shutil.rmtree(folder, ignore_errors=True)
    earlier = [] if step is None else _all_starts(run_dir)
    folder.mkdir(exist_ok=True)
    for start in earlier:  # also the one of a folder that was made before starts were kept
        path = folder / _name(start)
        if not path.exists():
            write_atomic(path, start.text)
    number = earlier[-1].number + 1 if earlier else 1
    write_atomic(folder / _name(Start(number, step or 0, config_yaml)), config_yaml)
    write_atomic(run_dir / "config.yaml", config_yaml)


def changes_since(run_dir: Path, step: int, config_yaml: str) -> list[Change]:
    """What differs from the configuration that was trained with up to `step`; nothing where none is known."""
    starts = _all_starts(run_dir)
    before = [start for start in _counting(starts) if start.step < step] or starts[:1]
    return changes(before[-1].text, config_yaml) if before else []


def course(run_dir: Path) -> list[tuple[int, Sequence[Change]]]:
    """The steps of a run after which its configuration changed, with what changed then; of the starts that count."""
    return course_of(_all_starts(run_dir))


def course_of(starts: Iterable[Start]) -> list[tuple[int, Sequence[Change]]]:
    """The same of starts in order, whoever read them."""
    found = ((now.step, changes(before.text, now.text)) for before, now in itertools.pairwise(_counting(starts)))
    return [(step, changed) for step, changed in found if changed]


def start_of(file: str, text: str) -> Start | None:
    """A start by its file's name and content; None where the name is none of `starts/`, or the content no configuration."""
    match = _NAME.match(file)
    return Start(int(match.group(1)), int(match.group(2)), text) if match and _is_config(text) else None


def changes(before: str, after: str) -> list[Change]:
    """The fields in which two configurations differ, by name.

    Where the earlier one is of an earlier version of this trainer, a field that is new since then has not changed.
    """
    first, second = (yaml.safe_load(without_credentials(text)) for text in (before, after))
    old, new = _leaves(with_new_keys(first)), _leaves(with_new_keys(second))
    known = old.keys() if OLD_SECTION in first and OLD_SECTION not in second else old.keys() | new.keys()
    fields = sorted(key for key in known if old.get(key) != new.get(key))
    return [Change(key, _word(old, key), _word(new, key)) for key in fields]


def _all_starts(run_dir: Path) -> list[Start]:
    """Every start in order; one whose file cannot be read is left out."""
    found = []
    for path in (run_dir / "starts").glob("*.yaml"):
        text = _read(path)
        if text is not None and (start := start_of(path.name, text)) is not None:
            found.append(start)
    if not found and (text := _read(run_dir / "config.yaml")) is not None and _is_config(text):
        return [Start(1, 0, text)]
    return sorted(found, key=lambda start: start.number)


def _counting(starts: Iterable[Start]) -> list[Start]:
    counting: list[Start] = []
    for start in starts:
        while counting and counting[-1].step >= start.step:
            counting.pop()
        counting.append(start)
    return counting


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _is_config(text: str) -> bool:
    try:
        return isinstance(yaml.safe_load(text), dict)
    except (ValueError, yaml.YAMLError):
        return False


def _name(start: Start) -> str:
    return f"{start.number:04d}_step_{start.step:06d}.yaml"


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, Mapping) and (value or not prefix):
        return {k: v for key, inner in value.items() for k, v in _leaves(inner, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}


def _word(leaves: Mapping[str, Any], key: str) -> str:
    if key not in leaves:
        return "not set"
    value = leaves[key]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
