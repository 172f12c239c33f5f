"""Prompts that a function of the user's own gives: texts, or rows as our own .jsonl has them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from machine.own import raised
from trainer.config.base import ConfigError
from trainer.config.own import found, own_function
from trainer.data.prompts.checks import DataError, shown
from trainer.data.prompts.lines import FIELDS, Rows, Split, check_fields

MOST = 2_000_000  # rows; a generator without an end must end somewhere
_RETURNS = "Iterable[str | dict]"


def read_code(path: Path, split: Split) -> Rows:
    """What the function gives for a split, numbered from 1. It is called twice: every rank and every start must get the same.

    Raises:
        DataError: no such function, it raised, gave no texts and rows, or something else the second time.
    """
    text = str(path)
    try:
        call = own_function(text, "path", ("split",), _RETURNS)
    except ConfigError as error:
        raise DataError(str(error)) from error
    rows = []
    for _ in range(2):
        try:
            rows.append(list(islice(call(split=split), MOST + 1)))
        except Exception as error:  # the user's code; whatever it raises is said with its line
            raise DataError(str(raised(found(text, "path"), error, f"for split={split!r}"))) from error
    first, second = rows
    if len(first) > MOST:
        raise DataError(f"path = {text}: it gives more than {MOST} prompts; give fewer, and draw from them by `weight`")
    if first != second:
        n = next(
            (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
        )
        raise DataError(
            f"path = {text}: called twice it gives other prompts, first number {n + 1}; every rank and every start must get the "
            "same: use random.Random(1), not random, and sort what has no order"
        )
    for number, row in enumerate(first, start=1):
        yield number, _row(f"{text}:{number}", row)


def _row(where: str, row: Any) -> Mapping[str, Any]:
    if isinstance(row, str):
        return {"prompt": row}
    if not isinstance(row, Mapping):
        raise DataError(
            f"{where}: a {type(row).__name__} ({shown(row)}); give a text, or a dict with {', '.join(FIELDS)}"
        )
    check_fields(where, row)
    return row
