"""One run, read as it grows: what a table, its curves and its evaluations say, in bounded memory."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import yaml

from trainer.config.old_keys import with_new_keys
from trainer.records import keys
from trainer.records.recorder import without_credentials
from trainer.report.run_folder import evaluated_step, number
from trainer.runs.curves import Curves, Evaluations
from trainer.runs.folder import Folder
from trainer.runs.state import State, state_of
from trainer.runs.tail import Row, Tail, last_rows

# What the table says of a configuration. Such a line alone is read in a moment; all of it takes 20 ms.
_HEADS = re.compile(r"^(?:run_name|max_steps|seed): .{1,500}$", re.MULTILINE)
IMAGES = "images drawn"  # in a step: no key of a row, it is made of two of them
SUMMED = ("time/total", "time/evaluate", "time/checkpoint", "time/cpu", IMAGES)
_SMALL = 4 * 1024 * 1024  # bytes of a configuration or summary


class Run:
    """A run folder.

    `glance` looks at small files and the end of the rows: milliseconds, whatever its length. `read` goes through the rows
    that have come since. Both may be called by several threads; one works at a time.

    Attributes:
        name: the folder's path below the output folder, with `/`.
        version: grows with every change that a page would show.
        complete: whether all rows were read; until then only what `glance` saw is known.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder, self.name = folder, "/".join(folder.parts)
        self.lock = threading.RLock()
        self.version, self.complete = 0, False
        self.state = State("empty", "")
        self.config_text = ""
        self._heads: Mapping[str, Any] = {}
        self.summary: Mapping[str, Any] = {}
        self._stamps: dict[str, float | None] = {}
        self._row: Row = {}
        self._evaluated: Row = {}  # the newest row with an evaluation
        self._forget()

    def _forget(self) -> None:
        self._tail = Tail()
        self.curves, self.evaluations = Curves(), Evaluations()
        self.sums: dict[str, float] = dict.fromkeys(SUMMED, 0.0)
        self.failed: Counter[tuple[str, str]] = Counter()
        self.complete = False

    @property
    def step(self) -> int:
        """The last recorded step."""
        return int(self._row.get("step", 0))

    @property
    def max_steps(self) -> int | None:
        value = self._heads.get("max_steps")
        return value if type(value) is int else None

    @property
    def title(self) -> str:
        """The run's own name, its folder's where it has none."""
        name = self._heads.get("run_name")
        return name if isinstance(name, str) and name else self.folder.parts[-1]

    @property
    def last_row(self) -> Mapping[str, Any]:
        return self._row

    @property
    def evaluated(self) -> Mapping[str, Any]:
        """The newest row that holds an evaluation."""
        return self._evaluated

    @property
    def written_at(self) -> float | None:
        """When its last row was written, in seconds of the epoch."""
        return self._stamps.get("metrics.jsonl")

    @property
    def seed(self) -> str:
        """The seed in words; a dash where the configuration has none."""
        return str(self._heads.get("seed", "–"))

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The configuration of the newest start, with today's names; empty where it cannot be read."""
        return with_new_keys(dict(_config(self.config_text)))

    def setting(self, *path: str) -> Any:
        """A value of the configuration; None where there is none."""
        node: Any = self.config
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node

    def glance(self) -> bool:
        """Look at what is small. Returns whether anything has changed."""
        with self.lock:
            before = (dict(self._stamps), self.state.kind)
            if self._is_new("config.yaml"):
                self.config_text = without_credentials(self.folder.text("config.yaml", limit=_SMALL))
                self._heads = _config("\n".join(_HEADS.findall(self.config_text)))
                self.__dict__.pop("config", None)
            if self._is_new("summary.json"):
                self.summary = _summary(self.folder.text("summary.json", limit=_SMALL))
            if self._is_new("metrics.jsonl") and not self.complete:
                self._look_at_end()
            changed = before[0] != self._stamps
            if changed and self.complete:
                self.read()
            # A lock may be let go without a file that changes.
            self.state = state_of(self.folder, self.step, self.max_steps, self.summary, time.time())
            if changed or before[1] != self.state.kind:
                self.version += 1
                return True
            return False

    def read(self) -> None:
        """Go through the rows that have come since the last time."""
        with self.lock:
            try:
                file = self.folder.open("metrics.jsonl")
            except OSError:
                self.complete = True
                return
            with file:
                if self._tail.is_another(file):
                    self._forget()
                    self._row, self._evaluated = {}, {}
                for rows in self._tail.rows(file):
                    self._take(rows)
            if not self.complete:
                self.complete = True
                self.version += 1

    def let_go(self) -> None:
        """Give back the memory of curves; a later `read` goes through the rows again."""
        with self.lock:
            self._forget()

    def _is_new(self, name: str) -> bool:
        stamp = self.folder.changed_at(name)
        if name in self._stamps and self._stamps[name] == stamp:
            return False
        self._stamps[name] = stamp
        return True

    def _look_at_end(self) -> None:
        try:
            with self.folder.open("metrics.jsonl") as file:
                rows = last_rows(file)
        except OSError:
            return
        if rows:
            self._row = rows[-1]
            self._evaluated = next((row for row in reversed(rows) if _is_evaluation(row)), self._evaluated)

    def _take(self, rows: list[Row]) -> None:
        if not rows:
            return
        for row in rows:
            drawn = number(row.get("images_per_s")) * number(row.get("time/total"))
            if math.isfinite(drawn):
                row[IMAGES] = drawn
        self.curves.add([row for row in rows if row["step"] > 0])
        for row in rows:
            for key in SUMMED:
                if (value := row.get(key)) is not None and math.isfinite(seconds := number(value)):
                    self.sums[key] += seconds
            if _is_evaluation(row):
                self._evaluated = row
                self.evaluations.add(evaluated_step(row), {k: v for k, v in row.items() if _is_of_evaluation(k)})
            for key, value in row.items():
                if key.startswith("failed/") and (told := keys.failed_of(key)) and math.isfinite(number(value)):
                    self.failed[told] += int(value)
        self._row = rows[-1]


def _is_evaluation(row: Row) -> bool:
    return any(key.startswith("eval/") for key in row)


def _is_of_evaluation(key: str) -> bool:
    return key.startswith(("eval/", "alarm/", "heldout/")) or (key.startswith("stats/") and key.count("/") == 2)


def _config(text: str) -> Mapping[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _summary(text: str) -> Mapping[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}
