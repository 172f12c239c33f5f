"""What the interpreter itself reports while a block runs: files opened, modules imported, programs started."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_listeners: list[list[tuple[str, tuple[Any, ...]]]] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    for events in _listeners:
        events.append((event, args))


@contextmanager
def recorded() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """The (event, arguments) of every audit event in the block, from any thread. A hook cannot be removed: it idles."""
    if not getattr(_hook, "installed", False):
        sys.addaudithook(_hook)
        _hook.installed = True  # type: ignore[attr-defined]
    events: list[tuple[str, tuple[Any, ...]]] = []
    _listeners.append(events)
    try:
        yield events
    finally:
        _listeners.remove(events)
