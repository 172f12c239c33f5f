"""docs/migration_pairuni.md shows the tables that are acted on, and docs/pairs.md numbers that hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from trainer.config import Config, TaskSamplingConfig
from trainer.config.file import checked
from trainer.migration.command_line import Flag
from trainer.migration.janus_grpo.flags import LAUNCHER, PAIRUNI, SHARED, T2I_R1

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "migration_pairuni.md").read_text(encoding="utf-8")
PAIRS = (DOCS / "pairs.md").read_text(encoding="utf-8")
TABLES = {"torchrun": LAUNCHER, "Both": SHARED, "PairUni": PAIRUNI, "T2I-R1": T2I_R1}


def row(name: str, flag: Flag) -> str:
    default = " ".join(flag.default) if isinstance(flag.default, list) else str(flag.default)
    shown = "" if flag.default is None else f"`{default.lower() if flag.kind == 'flag' else default}`"
    fields = ", ".join(f"`{field}`" for field in flag.fields) or "–"
    return f"| `--{name}` | {shown} | {fields} | {flag.remark} |"


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_each_table_and_nothing_else(name: str) -> None:
    (part,) = re.findall(rf"^### {re.escape(name)}\n(.*?)(?=^##|\Z)", PAGE, re.S | re.M)
    shown = [line for line in part.splitlines() if line.startswith("| `--")]
    assert shown == [row(flag, each) for flag, each in TABLES[name].items()]


def fields_in(annotation: Any, above: str = "") -> set[str]:
    found = set()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            found |= {f"{above}{name}"} | fields_in(field.annotation, f"{above}{name}.")
    for inner in get_args(annotation):
        found |= fields_in(inner, above)
    return found


def test_fields_of_the_tables_are_ours() -> None:
    ours = fields_in(Config) | {"rewards.services.hps.args", "rewards.services.vqa.args"}
    named = {field for flags in TABLES.values() for flag in flags.values() for field in flag.fields}
    assert named - ours == set()


def test_the_recipes_of_the_page_are_ours(tmp_path: Path) -> None:
    whole, denoised, part = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAIRS, re.DOTALL))
    config = checked(tmp_path / "recipe.yaml", Config, whole)
    assert isinstance(config.sampling, TaskSamplingConfig) and config.sampling.similarity_threshold == 0.6
    assert {each.task for each in config.evaluation.sets} == {"understand", "generate"}
    assert denoised["sampling"]["tasks"]["generate"]["flow"]["objective"]["type"] == "flow_grpo"
    unified = {"policy": {"type": "mot", "initialize": {}}, "evaluation": {}}
    flow = checked(tmp_path / "recipe.yaml", Config, {**whole, **denoised, **unified})
    assert isinstance(flow.sampling, TaskSamplingConfig) and flow.sampling.tasks.generate is not None
    tasks = {**whole["sampling"]["tasks"], "generate": part["generate"]}
    thinking = checked(tmp_path / "recipe.yaml", Config, {**whole, "sampling": {**whole["sampling"], "tasks": tasks}})
    assert isinstance(thinking.sampling, TaskSamplingConfig) and thinking.sampling.tasks.generate is not None
    assert thinking.sampling.tasks.generate.think is not None
