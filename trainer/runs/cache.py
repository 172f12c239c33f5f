"""What was read of long runs, kept between starts in a folder that may be deleted at any time.

A run's entry is used only while its `metrics.jsonl` is the same file with the same beginning, and the same end where it was
left; what has come since is read from there. Entries of other versions of this code are of another name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import threading
import time
import zipfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from trainer.report.reading import Reading
from trainer.runs.folder import Folder

WORTH_BYTES = 1024 * 1024  # of rows; fewer are read in the time that an entry takes
MAX_ENTRIES = 2000  # the newest; about 300 kB each
_LEFT_S = 3600.0  # an entry is written in milliseconds
_CODE = (
    "runs/cache.py",
    "records/rows/columns.py",
    "records/rows/curves.py",
    "records/rows/tail.py",
    "report/reading.py",
)


class Cache:
    """Readings by the path of their run.

    Attributes:
        problem: why nothing can be kept, a sentence; empty as long as it can.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.problem = folder, ""
        self._kept: dict[Path, int] = {}  # bytes of rows that an entry is of
        self._lock = threading.Lock()
        try:
            self._tidy()
        except OSError as error:
            self._give_up(error)

    def load(self, run: Folder) -> Reading | None:
        """A run's reading as far as it was kept; None where there is none. Whether it is still of the file is for the caller."""
        path = self._path(run)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                reading = Reading.from_arrays(json.loads(str(arrays["told"])), arrays)
            os.utime(path)
        except (OSError, EOFError, ValueError, TypeError, LookupError, RecursionError, zipfile.BadZipFile):
            return None  # never kept, or damaged: it is read and kept anew
        with self._lock:
            self._kept[path] = reading.tail.offset
        return reading

    def keep(self, run: Folder, reading: Reading) -> None:
        """Keep a reading, if much was read since it was last kept."""
        path = self._path(run)
        with self._lock:
            much = abs(reading.tail.offset - self._kept.get(path, 0)) >= WORTH_BYTES
        if not much or self.problem:
            return
        told, arrays = reading.as_arrays()
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, told=np.array(json.dumps(told)), **arrays)
        building = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            building.write_bytes(data.getbuffer())
            building.replace(path)
        except OSError as error:
            with suppress(OSError):
                building.unlink()  # a full disk leaves a part of it
            self._give_up(error)
            return
        with self._lock:
            self._kept[path] = reading.tail.offset

    def _path(self, run: Folder) -> Path:
        place = "\0".join((_code(), str(run.root), *run.parts))
        return self.folder / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.npz"

    def _tidy(self) -> None:
        """Remove the oldest of too many, and what a process that is gone left half written."""
        found = sorted(self.folder.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
        left = [path for path in self.folder.glob(".*.npz.*") if time.time() - path.stat().st_mtime > _LEFT_S]
        for path in [*found[MAX_ENTRIES:], *left]:
            path.unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        self.problem = f"{self.folder} cannot be written ({error.strerror}): every start reads all rows again"
        print(self.problem, file=sys.stderr, flush=True)


@cache
def _code() -> str:
    """A hash of the code that an entry depends on, so that none is read by code that means something else by it."""
    texts = [(Path(__file__).parents[1] / name).read_bytes() for name in _CODE]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def usual_folder() -> Path | None:
    """`$XDG_CACHE_HOME/rewards/runs`, else the one below `~/.cache`; None where there is no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    return base / "rewards" / "runs"
