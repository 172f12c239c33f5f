"""The pages of UniReason and NEO show the tables that are acted on, and the page of rows the formats that are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from trainer.config import Config
from trainer.config.packed import PackFormat
from trainer.data.formats.neo.registry import read_neo_registry
from trainer.data.formats.unireason.registry import read_registry
from trainer.migration.command_line import Flag
from trainer.migration.neo import flags as neo
from trainer.migration.unireason import flags as unireason

DOCS = Path(__file__).parents[3] / "docs"
TABLES: Mapping[str, Mapping[str, Mapping[str, Flag]]] = {
    "unireason": {
        "torchrun": unireason.LAUNCHER,
        "Model": unireason.MODEL,
        "Data": unireason.DATA,
        "Training": unireason.TRAINING,
    },
    "neo": {"torchrun": neo.LAUNCHER, "Model": neo.MODEL, "Data": neo.DATA, "Training": neo.TRAINING},
}


def row(name: str, flag: Flag) -> str:
    default = str(flag.default).lower() if flag.kind == "flag" else flag.default
    shown = "" if flag.default is None else f"`{default}`"
    fields = ", ".join(f"`{field}`" for field in flag.fields) or "–"
    return f"| `--{name}` | {shown} | {fields} | {flag.remark} |"


@pytest.mark.parametrize(("page", "part"), [(page, part) for page, parts in TABLES.items() for part in parts])
def test_the_page_shows_each_table_and_nothing_else(page: str, part: str) -> None:
    text = (DOCS / f"migration_{page}.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^### {part}\n(.*?)(?=^##|\Z)", text, re.S | re.M)
    assert [line for line in found.splitlines() if line.startswith("| `--")] == [
        row(name, flag) for name, flag in TABLES[page][part].items()
    ]


def fields_in(annotation: Any, above: str = "") -> set[str]:
    found = set()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            found |= {f"{above}{name}"} | fields_in(field.annotation, f"{above}{name}.")
    for inner in get_args(annotation):
        found |= fields_in(inner, above)
    return found


def test_fields_of_the_tables_are_ours() -> None:
    named = {
        field
        for parts in TABLES.values()
        for flags in parts.values()
        for flag in flags.values()
        for field in flag.fields
    }
    assert named - fields_in(Config) == set()


def test_the_registries_of_the_pages_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    for page, read in (("packed_rows", read_registry), ("migration_neo", read_neo_registry)):
        (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.S)
        assert yaml.safe_load(text)
        path.write_text(re.sub(r"^   ", "", text, flags=re.M) if page == "migration_neo" else text)
        assert read(path)


def test_the_page_of_rows_has_every_format() -> None:
    page = (DOCS / "packed_rows.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\| `(\w+)` \|", page, re.M))
    assert shown == set(get_args(PackFormat)) - {"conversations"} and "## Conversations" in page
