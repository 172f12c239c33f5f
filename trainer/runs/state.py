"""Where a run stands, told from its lock and its records, and from nothing else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainer.processes.run_lock import is_held
from trainer.report.source import number
from trainer.runs.folder import Folder

Kind = Literal["running", "finished", "stopped", "failed", "killed", "empty"]
_FLIGHT = re.compile(r"^step_\d{6,}(_rank\d+)?\.json$")
_HEAD = 512 * 1024  # bytes of a flight record that its error stands in; the steps come after it


@dataclass(frozen=True)
class State:
    """`kind` in a word, and a sentence that says what it was told from."""

    kind: Kind
    sentence: str


def state_of(folder: Folder, step: int, max_steps: int | None, summary: Mapping[str, Any], *, held: bool) -> State:
    """The state of a run whose last row is of `step`.

    running: a process holds the run's lock. finished: the summary is of the last step there is to make. stopped: the summary
    says why, or is of an earlier step, as after a signal. failed: the newest start left a flight record. killed: it left
    neither.

    Args:
        held: whether a process holds its lock.
    """
    rows_at, start_at = folder.changed_at("metrics.jsonl"), folder.changed_at("config.yaml")
    if held:
        return State("running", "A process holds its lock." + ("" if rows_at else " It has no rows yet."))
    crash, summary_at = newest_crash(folder), folder.changed_at("summary.json")
    if crash is not None and crash.at >= max(start_at or 0.0, summary_at or 0.0):
        return State("failed", f"{crash.kind}: {crash.message}")
    if summary and summary.get("steps") == step:
        return _told(step, max_steps, summary)
    if rows_at is None and start_at is None:
        return State("empty", "It has neither a configuration nor rows: it never began.")
    return State("killed", "Nobody holds its lock, and it left no word: killed, or the machine went down.")


def _told(step: int, max_steps: int | None, summary: Mapping[str, Any]) -> State:
    """The state by a summary of the last row's step."""
    if summary.get("stopped"):
        return State("stopped", str(summary["stopped"]))
    if summary.get("owed") is not None:
        return State("stopped", "Its last evaluation was left unfinished: starting again makes it.")
    if max_steps is None or step >= max_steps:
        return State("finished", f"All {step} steps are made.")
    return State("stopped", f"It was asked to stop, and saved at step {step}; starting again goes on from there.")


@dataclass(frozen=True)
class Crash:
    """The error of a flight record: when it was written (seconds of the epoch), in which file."""

    at: float
    file: str
    kind: str
    message: str
    traceback: str


def newest_crash(folder: Folder) -> Crash | None:
    """The newest flight record's error; None where there is none that can be read."""
    found = [
        (folder.changed_at("flight", name) or 0.0, name) for name, _ in folder.entries("flight") if _FLIGHT.match(name)
    ]
    if not found:
        return None
    at, name = max(found)
    try:
        with folder.open("flight", name) as file:
            head = file.read(_HEAD).decode("utf-8", errors="replace")
        error, _ = json.JSONDecoder().raw_decode(head, head.index('"error": ') + len('"error": '))
        return Crash(at, name, str(error["type"]), str(error["message"]), str(error["traceback"]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # damaged, or another program's
        return Crash(at, name, "flight record", f"flight/{name} cannot be read", "")


def gpus(summary: Mapping[str, Any]) -> float:
    """How many GPUs a run had, from the words for its hardware, `8 x NVIDIA H200`; 0 on CPUs, NaN where nothing is said."""
    hardware = summary.get("hardware")
    if not isinstance(hardware, str):
        return math.nan
    match = re.match(r"(\d+) x ", hardware)
    return number(int(match.group(1))) if match else 0.0


def is_locked(folder: Folder) -> bool:
    """Whether a process holds the run's lock."""
    try:
        with folder.open(".lock") as file:
            return is_held(file)
    except OSError:
        return False
