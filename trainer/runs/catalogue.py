"""All runs below an output folder, watched while pages are open."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Set
from pathlib import Path

from trainer.config import ConfigError
from trainer.runs.cache import Cache
from trainer.runs.folder import Folder
from trainer.runs.run import Run

MAX_RUNS, MAX_DEPTH = 5000, 3
KEPT_RUNS = 48  # whose curves are in memory, about 400 kB each; others are read again when they are asked for
TICK_S, ROUND_S = 0.25, 1.0  # between looks at runs that move, and at all of them
_MOVING_S = 15.0  # a run whose rows are younger is looked at every tick
_FILES = frozenset({"config.yaml", "metrics.jsonl", "summary.json"})


class Catalogue:
    """The runs of a folder, by name. Use as a context: inside, two threads keep it up to date.

    Attributes:
        version: grows with every change of any run, and with every run that comes or goes.
        links: symbolic links that were met; they are not followed.
    """

    def __init__(self, root: Path, cache: Cache | None = None) -> None:
        """`cache` holds what was read before, if anything is to be kept. Raises ConfigError: `root` is no folder."""
        if not root.is_dir():
            raise ConfigError(f"no folder at {root.absolute()}; give the folder that runs are in, such as outputs")
        self.root = root.resolve()
        self.links: list[str] = []
        self.version = 0
        self._cache = cache
        self._runs: dict[str, Run] = {}
        self._read: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._scan()
        for run in self.runs():
            run.glance()

    def __enter__(self) -> Catalogue:
        for work, name in ((self._watch, "runs-watch"), (self._go_through, "runs-read")):
            thread = threading.Thread(target=work, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def runs(self) -> list[Run]:
        with self._lock:
            return list(self._runs.values())

    def get(self, name: str) -> Run | None:
        with self._lock:
            return self._runs.get(name)

    def whole(self, name: str) -> Run | None:
        """A run with all its rows read; None where there is none of this name."""
        run = self.get(name)
        if run is not None:
            run.glance()
            if not run.complete:
                run.read()
                self.version += 1
            self._remember(run)
        return run

    def unread(self) -> int:
        """How many runs are still to be gone through."""
        return sum(not run.complete for run in self.runs())

    def _remember(self, run: Run) -> None:
        with self._lock:
            self._read[run.name] = None
            self._read.move_to_end(run.name)
            old = [self._read.popitem(last=False)[0] for _ in range(len(self._read) - KEPT_RUNS)]
            gone = [self._runs[name] for name in old if name in self._runs]
        for each in gone:
            each.let_go()

    def _scan(self) -> None:
        links: list[str] = []
        known = {run.name for run in self.runs() if run.is_there}
        names = dict.fromkeys(_found(Folder(self.root), known, links))
        with self._lock:
            new = [name for name in names if name not in self._runs]
            lost = [name for name in self._runs if name not in names]
            for name in lost:
                del self._runs[name]
            for name in new:
                self._runs[name] = Run(Folder(self.root, tuple(name.split("/"))), self._cache)
            self.links = links
            self.version += bool(new or lost)

    def _watch(self) -> None:
        rounded = time.monotonic()
        while not self._stopped.wait(TICK_S):
            everything = time.monotonic() - rounded >= ROUND_S
            if everything:
                rounded = time.monotonic()
                self._scan()
            for run in self.runs():
                if (everything or _moves(run)) and run.glance():
                    self.version += 1
                    if run.complete:
                        self._remember(run)

    def _go_through(self) -> None:
        """Read runs that were only glanced at: those that move first, then the newest."""
        while not self._stopped.wait(TICK_S):
            waiting = [run for run in self.runs() if not run.complete]
            waiting.sort(key=lambda run: (run.state.kind == "running", run.written_at or 0.0))
            while waiting and not self._stopped.is_set():
                run = waiting.pop()
                run.read()
                if len(self._read) < KEPT_RUNS:
                    self._remember(run)
                else:
                    run.let_go()  # those that were read first move, or are newer
                self.version += 1
                time.sleep(0.01)  # pages come first


def _moves(run: Run) -> bool:
    return run.state.kind == "running" or time.time() - (run.written_at or 0.0) < _MOVING_S


def _found(folder: Folder, known: Set[str], links: list[str], depth: int = 1) -> Iterator[str]:
    """Names of the run folders below `folder`. What is below a run is its own; those that are `known` are not looked into."""
    links += ["/".join((*folder.parts, name)) for name in folder.links()]
    for name, is_folder in folder.entries():
        if not is_folder or name.startswith("."):
            continue
        inner = folder.below(name)
        path = "/".join(inner.parts)
        if path in known or any(entry in _FILES for entry, _ in inner.entries()):
            yield path
        elif depth < MAX_DEPTH:
            yield from _found(inner, known, links, depth + 1)
