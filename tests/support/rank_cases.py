"""What modules share whose `main` is run on several ranks: a folder and cases on the command line, and what each rank found."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.forked import run_ranks
from trainer.config import DistributedConfig
from trainer.processes.distributed import World, world

ZERO: dict[str, dict[str, Any]] = {
    "zero0": {"stage": 0},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


def find_cases(
    argv: Sequence[str], find: Callable[[str, World, Path], Any], *, config: DistributedConfig | None = None
) -> int:
    """A `main`: `argv` is a folder and cases. Each rank writes what it found (anything JSON holds), by case."""
    folder, cases = Path(argv[0]), argv[1:]
    torch.set_num_threads(1)
    with world(config or DistributedConfig(device="cpu", deepspeed="any")) as group:
        found = {case: find(case, group, folder) for case in cases}
        _path(folder, group.rank).write_text(json.dumps(found), encoding="utf-8")
    return 0


def cases_on_ranks(module: str, folder: Path, *cases: str, ranks: int = 2) -> list[dict[str, Any]]:
    """Run a module's cases: what each rank found, by case."""
    run_ranks(module, str(folder), *cases, ranks=ranks, output=folder / "ranks")
    return [json.loads(_path(folder, rank).read_text(encoding="utf-8")) for rank in range(ranks)]


def deepspeed_json(engine: str, group: World, folder: Path) -> str | None:
    """The file of an engine by the names of `ZERO`, of this rank's own; None for `none`, the trainer's own engine."""
    if engine == "none":
        return None
    path = folder / f"{engine}{group.rank}.json"
    path.write_text(json.dumps({"zero_optimization": ZERO[engine]}), encoding="utf-8")
    return str(path)


def _path(folder: Path, rank: int) -> Path:
    return folder / f"found{rank}.json"
