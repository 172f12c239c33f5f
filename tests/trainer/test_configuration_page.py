"""docs/configuration.md says what the configuration is: its tables are those of the code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from trainer.config import Config
from trainer.config.advantage import ESTIMATORS
from trainer.config.objective import OBJECTIVES
from trainer.config.old_keys import NEW_PLACES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")


def table(head: str) -> dict[str, list[str]]:
    """The first column's name to the names in the second, of the table whose head begins with `head`."""
    _, _, rest = PAGE.partition(f"| {head} | ")
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    cells = [[re.findall(r"`([^`]+)`", cell) for cell in row.strip("|").split(" | ")] for row in rows]
    return {first[0]: second for first, second in cells}


@pytest.mark.parametrize(("section", "members"), [("objective", OBJECTIVES), ("advantage", ESTIMATORS)])
def test_the_fields_of_each_type_are_those_of_the_page(section: str, members: Mapping[str, type[BaseModel]]) -> None:
    found = table(f"`{section}.type`")
    # One that is tried out needs no row yet; a row that is there is right.
    assert {name: set(fields) for name, fields in found.items()} == {
        name: set(members[name].model_fields) - {"type"} for name in found
    }
    assert len(found) >= 5
    for name, member in members.items():
        assert member.model_fields["type"].annotation.__args__ == (name,)  # type: ignore[union-attr]


def test_every_old_name_is_on_the_page_with_its_new_place() -> None:
    found = table("before")
    assert found == {f"algorithm.{field}": list(places) for field, places in NEW_PLACES.items()}


def test_every_section_is_on_the_page() -> None:
    described = set(re.findall(r"`(\w+)`", PAGE.partition("## Sections with a type")[0]))
    assert set(Config.model_fields) - {"environment"} <= described
