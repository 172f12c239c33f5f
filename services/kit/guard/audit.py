"""The audit log: who asked for what, when, how much, and what the answer was. One JSON object a line.

Neither images, prompts nor tokens are in it. `prompts_sha256` lets someone who has the prompts show that they were the
ones: it is the SHA-256 of the prompts in order, each followed by a NUL.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import Counter

logger = logging.getLogger("services.audit")

_MAX_TEXT = 200  # characters of a value that a stranger chose, such as the path


class AuditLog:
    """Appends to a file that only its owner may read. The file may be moved away at any time: a new one is begun.

    A line that cannot be written is counted and logged, and the service goes on. Raises ValueError when the file cannot
    be opened at the start.
    """

    def __init__(self, path: Path, service: str, failures: Counter) -> None:
        self._path = path
        self._service = service
        self._failures = failures
        self._fd = -1
        try:
            self._open()
        except OSError as error:
            raise ValueError(f"audit log {path} cannot be written: {error.strerror or error}") from error

    def write(self, entry: Mapping[str, str | int | float]) -> None:
        """Append one line: the time, the service, then `entry`. One `write` call, so lines of processes do not mix."""
        line: dict[str, str | int | float] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "service": self._service,
        }
        line |= {name: value[:_MAX_TEXT] if isinstance(value, str) else value for name, value in entry.items()}
        try:
            if self._was_moved():
                self.close()
                self._open()
            os.write(self._fd, json.dumps(line).encode() + b"\n")
        except OSError as error:
            self._failures.inc()
            logger.error("audit line lost", extra={"path": str(self._path), "reason": str(error)})

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _was_moved(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(self._path)
            return self._fd < 0 or not os.path.samestat(there, os.fstat(self._fd))
        return True


def prompts_sha256(prompts: Iterable[str]) -> str:
    """The digest of a request's prompts, in hexadecimal."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.encode("utf-8") + b"\0")
    return digest.hexdigest()
