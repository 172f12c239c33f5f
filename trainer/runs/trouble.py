"""What went wrong in a run: alarms of its evaluations, scorers that changed, and the last warnings of its services."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from trainer.runs.folder import Folder
from trainer.runs.run import Run

_END = 512 * 1024  # bytes of a log's end that are looked at
_MAX_LINES, _MAX_WIDTH, _MAX_LOGS = 20, 400, 20
_LEVELS = re.compile(r"\b(warning|error|critical|traceback|exception|killed)\b", re.IGNORECASE)
_MAX_ALARM_FILES = 2000


def alarms_told(run: Run) -> list[tuple[str, str, str]]:
    """Name, the steps at which it was raised, and the newest sentence, of each alarm."""
    raised: dict[str, list[int]] = {}
    newest: dict[str, str] = {}
    for key in run.evaluations:
        if key.startswith("alarm/"):
            steps = [
                s for s, value in zip(run.evaluations.steps, run.evaluations.values(key), strict=True) if value > 0
            ]
            if steps:
                raised[key.removeprefix("alarm/")] = steps
    for step in sorted({step for steps in raised.values() for step in steps})[-_MAX_ALARM_FILES:]:
        for alarm in _json(run.folder, "eval", f"step_{step:06d}", "alarms.json"):
            if isinstance(alarm, Mapping):
                newest[str(alarm.get("name"))] = str(alarm.get("text"))
    return [(name, _range(steps), newest.get(name, "Its sentence is not kept.")) for name, steps in raised.items()]


def changed_scorers(folder: Folder) -> list[str]:
    """Where a reward came from another scorer than before, as sentences."""
    try:
        tree = json.loads(folder.text("rewards.json"))
        listed = tree.get("changes", [])
    except (ValueError, AttributeError, RecursionError):
        return []
    found = []
    for change in listed if isinstance(listed, list) else []:
        before, after = (change.get(end) if isinstance(change, Mapping) else None for end in ("before", "after"))
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            told = ", ".join(f"{name} {before[name]}, now {after.get(name)}" for name in before)
            found.append(
                f"Since step {change.get('step')} the reward {change.get('reward')} comes from another scorer: {told}."
            )
    return found


def last_warnings(folder: Folder) -> list[tuple[str, list[str]]]:
    """Of each log the last lines that warn or tell of an error; logs without one are left out."""
    found = []
    names = [name for name, is_folder in folder.entries("logs") if name.endswith(".log") and not is_folder]
    for name in names[:_MAX_LOGS]:
        lines = [line[:_MAX_WIDTH] for line in _end(folder, name) if _warns(line)]
        if lines:
            found.append((name, lines[-_MAX_LINES:]))
    return found


def _warns(line: str) -> bool:
    """By the level of a line of JSON, else by its words."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return bool(_LEVELS.search(line))
    if not isinstance(told, dict):
        return False
    # Until a service is ready its probes are answered so; that is no failure.
    return told.get("level") not in ("info", "debug") or (told.get("error_code") not in (None, "not_ready"))


def _end(folder: Folder, name: str) -> list[str]:
    try:
        with folder.open("logs", name) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _END))
            data = file.read(_END)
    except OSError:
        return []
    if size > _END:
        data = data.partition(b"\n")[2]
    return data.decode("utf-8", errors="replace").splitlines()


def _range(steps: list[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}, {len(steps)} times"


def _json(folder: Folder, *parts: str) -> list[Any]:
    try:
        value = json.loads(folder.text(*parts))
    except (ValueError, RecursionError):
        return []
    return value if isinstance(value, list) else []
