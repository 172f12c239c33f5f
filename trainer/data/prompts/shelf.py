"""Where the prompts of large files are kept: read by one process of those that share a folder, opened by all, and at later starts."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import IO

import trainer.data.fingerprints
import trainer.data.same_images
import wire.quotes
from trainer.data.prompts.checks import DataError
from trainer.data.prompts.detect import Found
from trainer.data.prompts.stored import PromptFolder, PromptWriter, UnstorableError

logger = logging.getLogger(__name__)

LARGE = 4 << 20  # bytes; what is smaller is read about as fast as it is opened
NAME = ".prompts"  # in the folder of all runs
_HELD = "held"  # in place of the files of one that cannot be stored


def is_large(found: Found) -> bool:
    """Whether the prompts of these files are worth a place on disk. What a function gives is asked of it at every start."""
    try:
        return found.format != "python" and sum(file.stat().st_size for file in found.files) >= LARGE
    except OSError:
        return False  # whoever reads the file says so


def shelved(
    cache_dir: Path, found: Found, options: object, write: Callable[[PromptWriter], None]
) -> PromptFolder | None:
    """The prompts of files, from the place that their content and how it is read have in a folder; written there before, if they are not.

    Others who want the same wait meanwhile. What the files held before is removed; who has opened it may go on. None: they
    name images, or the folder cannot be used; then each process holds them in memory.

    Args:
        options: how the files are read; JSON.

    Raises:
        DataError: as `write` does, or a file changed while it was read.
    """
    name = _digest(json.dumps([[str(file.absolute()) for file in found.files], options]).encode())
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with (cache_dir / f"{name}.lock").open("ab") as lock:
            _wait_for(lock, found.path)
            content = _content(found)
            place = cache_dir / f"{name}-{content}"
            if not place.is_dir():
                _fill(place, cache_dir.glob(f"{name}-*"), write)
                if _content(found) != content:
                    shutil.rmtree(place)
                    raise DataError(f"{found.path} was changed while it was read; start again when it is whole")
            return None if (place / _HELD).exists() else PromptFolder(place)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        logger.warning(
            "the prompts of %s are held in memory by every process, as %s cannot be used: %s; correct its owner, or remove it",
            found.path,
            cache_dir,
            error,
        )
        return None


def _wait_for(lock: IO[bytes], path: Path) -> None:
    """Lock a file, and say so where another process has it. It is let go of when the file is closed, however a process ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("waiting for another process to check the prompts of %s (it holds %s)", path, lock.name)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _fill(place: Path, older: Iterable[Path], write: Callable[[PromptWriter], None]) -> None:
    """Write a folder, which is there at once or not at all, in place of older ones."""
    for folder in older:
        shutil.rmtree(folder)
    part = place.with_name(f"{place.name}.part")  # among the older ones, should this process be killed
    part.mkdir()
    try:
        writer = PromptWriter(part)
        try:
            write(writer)
        except UnstorableError:
            (part / _HELD).touch()
        finally:
            writer.close()
        part.rename(place)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _content(found: Found) -> str:
    """What tells one reading of files from another: their bytes, and the code that checks them."""
    whole = hashlib.sha256(_code().encode())
    for path in found.files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:32]


@cache
def _code() -> str:
    """Of the files that decide what becomes of a row, so that prompts checked by another release are checked anew."""
    whole = hashlib.sha256(sys.version.encode())  # its tables of Unicode
    beside = [
        Path(str(module.__file__)) for module in (trainer.data.same_images, trainer.data.fingerprints, wire.quotes)
    ]
    for path in [*sorted(Path(__file__).parent.glob("*.py")), *beside]:
        whole.update(path.read_bytes())
    return whole.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
