"""Files below one folder. Nothing outside is ever opened, whatever a name says and wherever a symbolic link leads."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 64 * 1024 * 1024  # of a file that is read whole


@dataclass(frozen=True)
class Stamp:
    """What a file or folder is known to be unchanged by. Its time alone is not enough: the system's clock of files ticks every
    few milliseconds, and two writes may fall into one tick."""

    inode: int
    size: int
    time_ns: int

    @property
    def written_at(self) -> float:
        """In seconds of the epoch."""
        return self.time_ns / 1e9


class Folder:
    """A folder by its path, which may lead through links; everything below is opened part by part, without following any.

    A check of a path before it is opened would leave a moment in which a part of it can be exchanged for a link.
    """

    def __init__(self, root: Path, parts: tuple[str, ...] = ()) -> None:
        self.root, self.parts = root, parts

    def below(self, *parts: str) -> Folder:
        """A folder in this one."""
        return Folder(self.root, (*self.parts, *parts))

    def open(self, *parts: str) -> BinaryIO:
        """A regular file to read. Raises OSError: there is none, or the way leads through a link."""
        *folders, name = (*self.parts, *parts)
        at = self._enter(folders)
        try:
            # A pipe would make the reader wait for a writer.
            fd = os.open(_checked(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        finally:
            os.close(at)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "no regular file", name)
        return os.fdopen(fd, "rb")

    def read(self, *parts: str, limit: int = MAX_BYTES) -> bytes:
        """A file's content. Raises OSError, also for one of more than `limit` bytes."""
        with self.open(*parts) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"more than {limit} bytes, which is the most that is read", parts[-1])
        return data

    def text(self, *parts: str, limit: int = MAX_BYTES) -> str:
        """A file's content as UTF-8; empty where it cannot be read."""
        try:
            return self.read(*parts, limit=limit).decode("utf-8", errors="replace")
        except OSError:
            return ""

    def changed_at(self, *parts: str) -> float | None:
        """When a file was last written, in seconds of the epoch; None where there is none that may be opened."""
        try:
            with self.open(*parts) as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return None

    def stamps(self, *names: str) -> dict[str, Stamp | None]:
        """Of each file or folder in this one: its stamp; None where there is none, or it is a link or neither."""
        try:
            fd = self._enter(self.parts)
        except OSError:
            return dict.fromkeys(names)
        try:
            return {name: _stamp(name, fd) for name in names}
        finally:
            os.close(fd)

    def entries(self, *parts: str) -> Iterator[tuple[str, bool]]:
        """Name of each file and folder, and whether it is a folder; links and what is neither are left out."""
        try:
            fd = self._enter((*self.parts, *parts))
        except OSError:
            return
        try:
            with os.scandir(fd) as listing:
                found = [
                    (entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing if not entry.is_symlink()
                ]
        finally:
            os.close(fd)
        yield from sorted(found)

    def links(self, *parts: str) -> list[str]:
        """Names of the symbolic links in a folder."""
        try:
            fd = self._enter((*self.parts, *parts))
        except OSError:
            return []
        try:
            with os.scandir(fd) as listing:
                return sorted(entry.name for entry in listing if entry.is_symlink())
        finally:
            os.close(fd)

    def _enter(self, folders: list[str] | tuple[str, ...]) -> int:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in folders:
            try:
                inner = os.open(_checked(name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            finally:
                os.close(fd)
            fd = inner
        return fd


def _stamp(name: str, folder: int) -> Stamp | None:
    try:
        about = os.stat(_checked(name), dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
        return None
    return Stamp(about.st_ino, about.st_size, about.st_mtime_ns)


def _checked(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, "no name of a file", name)
    return name
