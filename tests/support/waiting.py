"""Tests wait for what they mean (a file, a line, a count), never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], what: str = "it did not come to it", timeout_s: float = 60.0) -> None:
    """Asks again and again. Raises AssertionError with `what` after `timeout_s` seconds."""
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.02)
