"""Reads a run folder as it is: finished, running, killed, or half empty. What cannot be read is said, not hidden."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from trainer.config import ConfigError
from trainer.config.old_keys import with_new_keys
from trainer.records.recorder import without_credentials
from trainer.records.starts import Change, course
from trainer.report.reading import IMAGES, line_of
from trainer.report.rows import RunRows, read_rows
from trainer.report.source import Line, is_of_evaluation, number, setting, trained_on

_SAMPLES = re.compile(r"^step_(\d{6,})\.json$")


@dataclass(frozen=True)
class RunFolder:
    """A run folder's content, each part empty where it is missing.

    Attributes:
        config, config_text: the resolved configuration, parsed and as text (user names in addresses left out).
        rows: what those of metrics.jsonl come to.
        summary: of summary.json, only if it is about the last row's step; an earlier finish is stale.
        samples: records by step.
        config_changes: steps after which the configuration changed, with what changed.
        scorers: of rewards.json: what scores each reward.
        scorer_changes: likewise: where a reward came from another scorer, in order.
        sight: of sight.json: what the run proved before its first step.
        problems: what was there and could not be read.
    """

    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    rows: RunRows = field(default_factory=lambda: RunRows(warn_after=3))
    summary: Mapping[str, Any] = field(default_factory=dict)
    stale_summary: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    config_changes: Sequence[tuple[int, Sequence[Change]]] = ()
    scorers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scorer_changes: Sequence[Mapping[str, Any]] = ()
    sight: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[str] = ()

    @property
    def step(self) -> int:
        """The last recorded step."""
        return int(self.rows.row.get("step", 0))

    @property
    def max_steps(self) -> int | None:
        value = self.config.get("max_steps")
        return value if isinstance(value, int) else None

    @property
    def last_written(self) -> datetime | None:
        """When the last row was written (UTC)."""
        path = self.path / "metrics.jsonl"
        return datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.exists() else None

    @property
    def writes(self) -> bool:
        """Whether the policy writes texts."""
        kinds = ("tokens", "tasks")
        return self.setting("sampling", "type") in kinds or "text/length" in self.rows.curves

    @property
    def tasks(self) -> list[str]:
        """What the policy is trained on, where it has tasks: the first part of the keys that each task has of its own."""
        sections = self.setting("sampling", "tasks")
        return [str(name) for name, each in sections.items() if each] if isinstance(sections, Mapping) else []

    def setting(self, *keys: str, default: Any = None) -> Any:
        """A configuration value by its path of keys."""
        node: Any = self.config
        for key in keys:
            if not isinstance(node, Mapping) or key not in node:
                return default
            node = node[key]
        return node

    def fact(self, key: str) -> Any:
        """A value of the summary that stays true when the run goes on (hardware, the base model)."""
        return self.summary.get(key, self.stale_summary.get(key))

    @property
    def keys(self) -> list[str]:
        """Every key of the rows."""
        return [*self.evaluated_keys(), *self.trained_keys()]

    def rewards(self) -> list[str]:
        """Every reward that was configured or recorded, in the configuration's order."""
        columns = self.setting("rewards", "columns", default={})
        names = dict.fromkeys(str(name) for name in columns) if isinstance(columns, Mapping) else {}
        found = self.keys
        for key in found:
            parts = key.split("/")
            if parts[0] == "eval" and parts[-1] == "valid_share":
                names["/".join(parts[1:-1])] = None  # of a set with a name: <set>/<reward>
            elif parts[0] in {"reward", "eval"} and len(parts) > 1 and key != "eval/step":
                names[parts[1]] = None
        keys = "reward/{}/valid_share", "reward/{}/mean", "eval/{}"
        return [name for name in names if any(key.format(name) in found for key in keys)]

    def datasets(self) -> list[str]:
        """The data sets that have means of their own."""
        keys = (key.split("/") for key in self.keys if key.startswith("dataset/"))
        return list(dict.fromkeys(parts[1] for parts in keys if len(parts) == 4))

    def failures(self) -> dict[str, list[str]]:
        """Reward to the codes of its failed training scores."""
        found: dict[str, list[str]] = {}
        for name, code in sorted(told for told, count in self.rows.failed.items() if count):
            found.setdefault(name, []).append(code)
        return found

    def trained_on(self) -> dict[str, float]:
        """Weights of the rewards that some training set or task uses."""
        return trained_on(self.config)

    def is_trained_on(self, name: str) -> bool:
        """Whether training uses a reward, or for `<set>/<reward>` that reward."""
        return name in self.trained_on() or name.rpartition("/")[2] in self.trained_on()

    @property
    def changed_at(self) -> list[float]:
        return [float(step) for step, _ in self.config_changes]

    def trained_keys(self) -> list[str]:
        return [key for key in self.rows.curves if key != IMAGES and not is_of_evaluation(key)]

    def evaluated_keys(self) -> list[str]:
        return list(self.rows.evaluations)

    def trained(self, key: str) -> Line:
        return line_of(self.rows.curves.curve(key))

    def counted(self, key: str) -> Line:
        return line_of(self.rows.curves.counted(key))

    def evaluated(self, names: Sequence[str]) -> tuple[list[float], list[list[float]]]:
        steps, columns = self.rows.evaluations.points(names)
        return [float(step) for step in steps], columns

    def total(self, key: str) -> float:
        """The sum of a key over all rows."""
        before = number(self.rows.first.get(key))  # of row 0, which is no step's and in no curve
        return math.fsum(self.rows.curves.sums(key)) + (0.0 if math.isnan(before) else before)

    def ends(self, key: str) -> tuple[tuple[int, float] | None, tuple[int, float] | None]:
        """(step, value) of a key's first and last numbers; the last is None when there is only one. In a long run those of a
        step are the means of what the first and the last point stand for."""
        if is_of_evaluation(key):
            steps, (values,) = self.evaluated([key])
        else:
            line = self.trained(key)
            steps, values = list(line.steps), list(line.values)
        found = [(int(step), value) for step, value in zip(steps, values, strict=True) if not math.isnan(value)]
        return (found[0] if found else None, found[-1] if len(found) > 1 else None)


def load_run(path: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        ConfigError: there is no such folder, or it holds no run.
    """
    if not path.is_dir():
        raise ConfigError(f"no run folder at {path}; a run is a folder under outputs/")
    if not any((path / name).exists() for name in ("config.yaml", "metrics.jsonl", "summary.json")):
        raise ConfigError(f"{path} holds no run: config.yaml, metrics.jsonl and summary.json are all missing")
    problems: list[str] = []
    text = _read(path / "config.yaml", problems)
    config = _yaml(text, problems)
    after = number(setting(config, "logging", "warn_after_steps"))
    rows = read_rows(path / "metrics.jsonl", warn_after=int(after) if after >= 1 else 3)
    summary = _json(path / "summary.json", problems, dict)
    records = _json(path / "rewards.json", problems, dict)
    fresh = summary.get("steps") == rows.row.get("step", 0)
    return RunFolder(
        path=path,
        config=config,
        config_text=without_credentials(text),
        rows=rows,
        summary=summary if fresh else {},
        stale_summary={} if fresh else summary,
        samples=_samples(path / "samples", problems),
        config_changes=course(path),
        scorers=_only(records.get("scorers"), dict, problems),
        scorer_changes=_only(records.get("changes"), list, problems),
        sight=_sight(path / "sight.json", problems),
        problems=problems,
    )


def _sight(path: Path, problems: list[str]) -> list[Mapping[str, Any]]:
    """What a policy that reads images proved; nothing of other policies."""
    found = _json(path, problems, list) if path.exists() else []
    return [each for each in found if isinstance(each, Mapping)]


def base_statement(checkpoint: Path) -> str | None:
    """How a base was made: `about_base.md` beside its file, or `about` in a safetensors file's own metadata."""
    beside = checkpoint.parent / "about_base.md"
    try:
        if beside.is_file():
            return beside.read_text(encoding="utf-8").strip() or None
        if checkpoint.suffix == ".safetensors" and checkpoint.is_file():
            with safe_open(str(checkpoint), framework="np") as file:
                return (file.metadata() or {}).get("about")
    except (OSError, UnicodeDecodeError, SafetensorError):
        return None  # the caller says that nothing is recorded
    return None


def _read(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return ""


def _yaml(text: str, problems: list[str]) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problems.append(f"config.yaml is not YAML: {error}")
        return {}
    return with_new_keys(config) if isinstance(config, dict) else {}


def _json(path: Path, problems: list[str], kind: type) -> Any:
    text = _read(path, problems)
    if not text:
        return kind()
    try:
        value = json.loads(text)
    except ValueError as error:
        problems.append(f"{path.name} is not JSON: {error}")
        return kind()
    if not isinstance(value, kind):
        problems.append(f"{path.name} holds {type(value).__name__}, not {kind.__name__}")
        return kind()
    return value


def _only(value: Any, kind: type, problems: list[str]) -> Any:
    """A part of rewards.json, if it holds mappings as it should."""
    entries = value.values() if isinstance(value, dict) else value
    if isinstance(value, kind) and all(isinstance(entry, dict) for entry in entries):
        return value
    if value is not None:
        problems.append(f"rewards.json holds {type(value).__name__} where {kind.__name__} of mappings belongs")
    return kind()


def _samples(folder: Path, problems: list[str]) -> dict[int, list[Mapping[str, Any]]]:
    """The first and the last step's records; a long run has thousands of others, which the page does not show."""
    listings = {
        int(match.group(1)): path for path in folder.glob("step_*.json") if (match := _SAMPLES.match(path.name))
    }
    found: dict[int, list[Mapping[str, Any]]] = {}
    for steps in (sorted(listings), sorted(listings, reverse=True)):
        for step in steps:
            if step in found:
                break
            found[step] = [record for record in _json(listings[step], problems, list) if isinstance(record, dict)]
            if found[step]:
                break
            del found[step]
    return found
