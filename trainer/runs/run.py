"""One run, read as it grows: what a table, its curves and its evaluations say, in bounded memory."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import yaml

from trainer.config.old_keys import with_new_keys
from trainer.records.recorder import without_credentials
from trainer.records.rows.curves import Curves, Evaluations
from trainer.records.rows.tail import Row, newest
from trainer.report.reading import SUMMED, Reading
from trainer.runs.cache import Cache
from trainer.runs.folder import Folder, Stamp
from trainer.runs.state import State, is_locked, state_of

# What the table says of a configuration. Such a line alone is read in a moment; all of it takes 20 ms.
_HEADS = re.compile(r"^(?:run_name|max_steps|seed): .{1,500}$", re.MULTILINE)
_SMALL = 4 * 1024 * 1024  # bytes of a configuration or summary
_WATCHED = ("config.yaml", "summary.json", "metrics.jsonl", ".lock", "flight")


class Run:
    """A run folder.

    `glance` looks at small files and the end of the rows: milliseconds, whatever its length. `read` goes through the rows
    that have come since. Both may be called by several threads; one works at a time.

    Attributes:
        name: the folder's path below the output folder, with `/`.
        version: grows with every change that a page would show.
        complete: whether all rows were read; until then only what `glance` saw is known, and `sums`, `failed` and `alarms`
            are empty.
        sums: seconds and images of all rows, by key.
        failed: failed scores by reward and code.
        alarms: each alarm's name, with how many evaluations raised it.
        knows_cpu: whether rows tell CPU seconds.
    """

    def __init__(self, folder: Folder, cache: Cache | None = None) -> None:
        self.folder, self.name = folder, "/".join(folder.parts)
        self.lock = threading.RLock()
        self.version, self.complete = 0, False
        self.state = State("empty", "")
        self.config_text = ""
        self.summary: Mapping[str, Any] = {}
        self.sums = dict.fromkeys(SUMMED, 0.0)
        self.failed: Counter[tuple[str, str]] = Counter()
        self.alarms: Mapping[str, int] = {}
        self.knows_cpu = False
        self._cache = cache
        self._reading: Reading | None = None
        self._heads: Mapping[str, Any] = {}
        self._stamps: dict[str, Stamp | None] = {}
        self._held = False
        self._row: Row = {}
        self._evaluated: Row = {}  # the newest row with an evaluation

    @property
    def curves(self) -> Curves:
        """The curves of all rows, read again where they were let go."""
        return self._whole().curves

    @property
    def evaluations(self) -> Evaluations:
        """What evaluations found, read again where it was let go."""
        return self._whole().evaluations

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
        stamp = self._stamps.get("metrics.jsonl")
        return None if stamp is None else stamp.written_at

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

    @property
    def is_there(self) -> bool:
        """Whether the last glance saw a file that makes the folder a run's."""
        return any(self._stamps.get(name) is not None for name in ("config.yaml", "summary.json", "metrics.jsonl"))

    def glance(self) -> bool:
        """Look at what is small. Returns whether anything has changed."""
        with self.lock:
            stamps = self.folder.stamps(*_WATCHED)
            held = stamps[".lock"] is not None and is_locked(self.folder)
            if stamps == self._stamps and held == self._held:
                return False
            new = {name for name, stamp in stamps.items() if stamp != self._stamps.get(name)}
            self._stamps, self._held = stamps, held
            if "config.yaml" in new:
                self.config_text = without_credentials(self.folder.text("config.yaml", limit=_SMALL))
                self._heads = _config("\n".join(_HEADS.findall(self.config_text)))
                self.__dict__.pop("config", None)
            if "summary.json" in new:
                self.summary = _summary(self.folder.text("summary.json", limit=_SMALL))
            if "metrics.jsonl" in new:
                if self.complete:
                    self.read()
                else:
                    self._look_at_end()
            self.state = state_of(self.folder, self.step, self.max_steps, self.summary, held=held)
            self.version += 1
            return True

    def read(self) -> None:
        """Go through the rows that have come since the last time."""
        with self.lock:
            reading = self._read_on()
            self.sums, self.failed, self.alarms = reading.sums, reading.failed, reading.alarms()
            self.knows_cpu = "time/cpu" in reading.curves
            self._row, self._evaluated = reading.row, reading.evaluated
            if not self.complete:
                self.complete = True
                self.version += 1

    def let_go(self) -> None:
        """Give back the memory of curves and evaluations. What the table says stays; they are read again where they are asked
        for."""
        with self.lock:
            self._reading = None

    def _whole(self) -> Reading:
        with self.lock:
            return self._reading or self._read_on()

    def _read_on(self) -> Reading:
        """Everything up to the file's end: from where it was reached, here or in the cache."""
        reading = self._reading or (self._cache and self._cache.load(self.folder)) or Reading()
        try:
            file = self.folder.open("metrics.jsonl")
        except OSError:
            self._reading = Reading()
            return self._reading
        with file:
            if reading.tail.is_another(file):
                reading = Reading()
            reading.go_on(file)
        self._reading = reading
        if self._cache is not None:
            self._cache.keep(self.folder, reading)
        return reading

    def _look_at_end(self) -> None:
        try:
            with self.folder.open("metrics.jsonl") as file:
                row, evaluated = newest(file)
        except OSError:
            return
        self._row, self._evaluated = row or self._row, evaluated or self._evaluated


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
