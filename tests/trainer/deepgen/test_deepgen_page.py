"""docs/migration_deepgen.md shows the tables that are acted on: every flag, variable and reward with what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from trainer.migration.deepgen.flags import FLAGS, REMOVED
from trainer.migration.deepgen.rewards import REWARDS, Served
from trainer.migration.deepgen.variables import VARIABLES

PAGE = (Path(__file__).resolve().parents[3] / "docs/migration_deepgen.md").read_text(encoding="utf-8")


def code(*names: str) -> str:
    return ", ".join(f"`{name}`" for name in names)


def flag_rows() -> Iterator[str]:
    for name, flag in FLAGS.items():
        default = (
            "" if flag.default is None else code(" ".join(flag.default) if flag.kind == "texts" else str(flag.default))
        )
        yield f"| {code(f'--{name}')} | {default} | {code(*flag.fields) or '–'} | {flag.remark} |"
    for name, other in REMOVED.items():
        yield f"| {code(f'--{name}')} | | refused | removed there, too; use {other} |"


def variable_rows() -> Iterator[str]:
    """Neighbours of which the same is said share a row."""
    for (fields, remark), group in groupby(VARIABLES.items(), key=lambda item: (item[1].field, item[1].remark)):
        ours = code(*fields.split(", ")) if fields else "–"
        yield f"| {code(*(name for name, _ in group))} | {ours} | {remark} |"


def reward_rows() -> Iterator[str]:
    for name, served in REWARDS.items():
        if isinstance(served, Served):
            yield f"| {code(name)} | {code(served.service)} | {code(served.reward)} | {served.remark} |"
        else:
            yield f"| {code(name)} | – | – | {served} |"


@pytest.mark.parametrize("rows", [flag_rows, variable_rows, reward_rows])
def test_the_page_shows_the_table(rows: object) -> None:
    assert callable(rows)
    missing = [row for row in rows() if row not in PAGE]
    assert not missing, "rows that the page lacks:\n" + "\n".join(missing)


def test_the_page_shows_nothing_else_as_theirs() -> None:
    """A flag that was dropped from the table does not linger on the page."""
    shown = {line.split("`")[1].removeprefix("--") for line in PAGE.splitlines() if line.startswith("| `--")}
    assert shown == {*FLAGS, *REMOVED}
