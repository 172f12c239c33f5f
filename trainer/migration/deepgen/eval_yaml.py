"""DeepGen-RL's evaluation file: which prompts, how many images of each, how they are made and who judges them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from trainer.config.base import ConfigError, say
from trainer.config.file import read_yaml
from trainer.migration.deepgen.names import fitting_name, renamed

Scoring = Literal["unigenbench/en", "unigenbench/zh"]
PROMPT_SUFFIXES = (".txt", ".jsonl", ".parquet", ".csv")
MAX_DUPLICATES = 1000
MAX_INFERENCE_STEPS = 1000
_FIELDS = ("name", "path", "duplicates", "cfg_scale", "num_inference_steps", "scoring")


@dataclass(frozen=True)
class EvalDataset:
    """One entry of `datasets`.

    Attributes:
        name: unique in the file; part of metric names (`eval/<name>`), so a name that cannot be one is changed.
        path: the prompt file, which is there; a relative one counted from the YAML file.
        duplicates: images per prompt.
        cfg_scale: guidance; None takes the run's. DeepGen-RL's 0 is no guidance.
        num_inference_steps: denoising steps; None takes the run's.
        scoring: None, or UniGenBench in a language.
    """

    name: str
    path: Path
    duplicates: int = 1
    cfg_scale: float | None = None
    num_inference_steps: int | None = None
    scoring: Scoring | None = None


def read_eval_yaml(path: str | Path, *, must_exist: bool = True) -> list[EvalDataset]:
    """Read DeepGen-RL's evaluation YAML as it is, in the order of the file.

    `scoring` is `unigenbench` (English), `unigenbench/en`, `unigenbench/zh`, a mapping {type, language}, or a list with
    one such mapping.

    Args:
        must_exist: refuse a prompt file that is not there. A recipe is read before its prompts are, which says it then.

    Raises:
        ConfigError: what DeepGen-RL would have passed over: no entry, a prompt file that is not there or of an unknown
            kind, an unknown key, a number out of range, a scoring that is none. The message names the entry and field.
    """
    path = Path(path)
    raw = read_yaml(path)
    unknown = [key for key in raw if key != "datasets"]
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]}: unknown key; the only one is `datasets`")
    entries = raw.get("datasets")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: datasets: must be a list of entries like {{name: ..., path: ...}}, at least one")
    found: list[EvalDataset] = []
    for index, entry in enumerate(entries):
        dataset = _read_entry(f"{path}: datasets.{index}", entry, path.parent)
        if must_exist:
            _check_there(f"{path}: datasets.{index}.path", dataset.path)
        if any(other.name == dataset.name for other in found):
            raise ConfigError(
                f"{path}: datasets.{index}.name: {dataset.name!r} comes twice; give each a name of its own"
            )
        found.append(dataset)
    return list(_with_fitting_names(path, found))


def _with_fitting_names(path: Path, found: Sequence[EvalDataset]) -> Iterator[EvalDataset]:
    taken = {each.name for each in found}
    for index, each in enumerate(found):
        fit = fitting_name(each.name, taken)
        if fit != each.name:
            taken.add(fit)
            say(renamed(f"{path}: datasets.{index}.name", each.name, fit))
        yield replace(each, name=fit)


def _read_entry(where: str, entry: Any, folder: Path) -> EvalDataset:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: {entry!r} is not an entry like {{name: ..., path: ...}}")
    for key in entry:
        if key not in _FIELDS:
            raise ConfigError(f"{where}.{key}: unknown key; an entry has {', '.join(_FIELDS)}")
    for key in ("name", "path"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise ConfigError(f"{where}.{key}: {entry.get(key)!r} is no text; every entry needs a name and a path")
    return EvalDataset(
        name=entry["name"],
        path=_prompt_file(f"{where}.path", Path(os.path.normpath(folder / entry["path"]))),
        duplicates=_whole(f"{where}.duplicates", entry.get("duplicates", 1), MAX_DUPLICATES),
        cfg_scale=_guidance(f"{where}.cfg_scale", entry.get("cfg_scale")),
        num_inference_steps=None
        if entry.get("num_inference_steps") is None
        else _whole(f"{where}.num_inference_steps", entry["num_inference_steps"], MAX_INFERENCE_STEPS),
        scoring=_scoring(f"{where}.scoring", entry.get("scoring")),
    )


def _prompt_file(where: str, path: Path) -> Path:
    if path.suffix.lower() not in PROMPT_SUFFIXES:
        raise ConfigError(f"{where}: {path} ends in none of {', '.join(PROMPT_SUFFIXES)}")
    return path


def _check_there(where: str, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"{where}: no file at {path.absolute()}; a relative path counts from the YAML file")


def _whole(where: str, value: Any, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigError(f"{where}: must be a whole number from 1 to {most}; given: {value!r}")
    return value


def _guidance(where: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{where}: must be a number of at least 0 (0 is no guidance); given: {value!r}")
    return float(value)


def _scoring(where: str, value: Any) -> Scoring | None:
    if value is None:
        return None
    known = "unigenbench, unigenbench/en, unigenbench/zh or {type: unigenbench, language: zh}"
    entry = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1 else value
    if isinstance(entry, Mapping) and isinstance(entry.get("type"), str) and set(entry) <= {"type", "language"}:
        name, language = entry["type"], entry.get("language")
        if language is not None:
            if "/" in name and name != f"unigenbench/{language}":
                raise ConfigError(f"{where}: type {name!r} and language {language!r} contradict each other; keep one")
            name = name if "/" in name else f"{name}/{language}"
    else:
        name = entry
    name = "unigenbench/en" if name == "unigenbench" else name
    if name not in get_args(Scoring):
        raise ConfigError(f"{where}: {value!r} is no scoring; write {known}, or leave it out for none")
    return cast(Scoring, name)
