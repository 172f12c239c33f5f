"""Whole runs on packs with the double that reads them and rows in memory: in this process, or as `main` in one of its own.

The recipe names a policy that reads packs; what is built in its place is the double.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.support.pack_reader import PackReader
from tests.support.pack_rows import groups_of, plans
from trainer.config import PackedConfig
from trainer.data.packing.groups import PackGroup

NAMES = ("drawings", "writings", "thoughts")


def tree(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """The recipe of a small run. `section__field` changes one field."""
    sets = [{"name": each, "path": f"{each}.json", "format": "t2i"} for each in NAMES]
    found: dict[str, Any] = {
        "run_name": name,
        "output_dir": str(folder / "outputs"),
        "program": "supervised",
        "max_steps": 6,
        "policy": {"type": "mot", "initialize": {}},
        "packed": {
            "groups": [
                {"name": each["name"], "sets": [each], "mandatory": each["name"] == "thoughts"} for each in sets
            ],
            "packs": 2,
            "expected_tokens": 60,
            "max_tokens": 64,
            "buffer_below": 40,
            "buffer_size": 3,
            "hold_out": 3,
        },
        "optim": {"lr": 1e-2, "schedule": "constant"},
        "evaluation": {"every": 3},
        "checkpoint": {"save_every": 1},
        "distributed": {"device": "cpu", "num_threads": 1},
        "logging": {"report_every": 1000, "report_to": [], "progress": False},
    }
    for key, value in changes.items():
        section, _, field = key.partition("__")
        found[section] = {**found.get(section, {}), field: value} if field else value
    return found


def write_recipe(folder: Path, name: str = "run", **changes: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree(folder, name, **changes)), encoding="utf-8")
    return path


def with_double(patch: pytest.MonkeyPatch) -> None:
    """Runs of this process have the double in place of a model, and rows in memory in place of files; row 4 of each is wrong."""
    from trainer.programs import assemble, packs, supervised

    def read_groups(packed: PackedConfig, seed: int) -> list[PackGroup]:
        return groups_of(packed, {name: plans(name, 20, bad=(3,)) for name in NAMES}, seed)

    family = SimpleNamespace(check_plans=lambda config, policy: None)
    patch.setattr(packs, "read_groups", read_groups)
    patch.setattr(supervised, "build_policy", lambda section, device, keep_reference: PackReader())
    patch.setattr(assemble, "entry_of", lambda section: SimpleNamespace(family=family))


def main(argv: list[str]) -> int:
    """The trainer's command, with the double."""
    from trainer.__main__ import main as command

    with pytest.MonkeyPatch.context() as patch:
        with_double(patch)
        return command(argv)
