"""What the services said about a sample beside its scores: text and boxes that were found, reasons, verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of one reward's words on one sample; they are kept for a few samples of each evaluation.
MAX_TEXT, MAX_LIST, MAX_DEPTH = 1000, 50, 8


def seen(details: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each reward's details, and the error where it has no score; long texts and lists are cut, and say so."""
    return {str(reward): _cut(told, MAX_DEPTH) for reward, told in details.items() if told}


def _cut(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}… ({len(value)} characters)"
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        return {str(key)[:MAX_TEXT]: _cut(each, depth - 1) for key, each in list(value.items())[:MAX_LIST]}
    if isinstance(value, list | tuple):
        more = [f"… ({len(value)} in all)"] if len(value) > MAX_LIST else []
        return [*(_cut(each, depth - 1) for each in value[:MAX_LIST]), *more]
    return str(value)[:MAX_TEXT]
