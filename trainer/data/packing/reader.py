"""Reads rows ahead in threads. What is read does not depend on when, or by which thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

LaidT = TypeVar("LaidT")
Key = tuple[int, int]  # a group's number, and a position of its endless dealing


class Reader(Generic[LaidT]):
    """Gives a row when it is asked for, sooner where it was read ahead.

    Args:
        read: reads the row of a key; called by several threads at once where `workers` is above 1.
        workers: threads that read ahead; without any, rows are read as they are asked for.
    """

    def __init__(self, read: Callable[[Key], LaidT], workers: int) -> None:
        self._read, self.workers = read, workers
        self._ahead: dict[Key, Future[LaidT]] = {}
        self._kept: dict[Key, LaidT] = {}
        self._threads = ThreadPoolExecutor(workers, "rows") if workers else None

    def ahead(self, keys: Iterable[Key]) -> None:
        """Begin to read these rows, which will be asked for soon."""
        if self._threads is None:
            return
        for key in keys:
            if key not in self._ahead and key not in self._kept:
                self._ahead[key] = self._threads.submit(self._read, key)

    def take(self, key: Key) -> LaidT:
        """The row, and it is forgotten. Raises what reading it raises."""
        if key in self._kept:
            return self._kept.pop(key)
        if (future := self._ahead.pop(key, None)) is not None:
            return future.result()
        return self._read(key)

    def keep(self, key: Key, row: LaidT) -> None:
        """Remember a row that was taken and will be asked for again."""
        self._kept[key] = row

    def close(self) -> None:
        """Begin no more; what is being read is waited for."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
