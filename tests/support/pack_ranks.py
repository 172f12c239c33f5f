"""Steps on packs on this rank's lanes; `main` is run on two ranks, the rest with a world of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.bigram_ranks import gradient
from tests.support.pack_reader import PackReader
from tests.support.pack_rows import packed, plans, updater_of
from tests.support.rank_cases import deepspeed_json, find_cases
from tests.support.tiny_updates import WORLD
from trainer.objectives.packed import PackBatch, SupervisedPacks
from trainer.processes.distributed import World

NAMES = ("drawings", "writings", "thoughts")
GROUPS = [{"name": name} for name in NAMES]
LOSS = {"reduction": "square", "ce_weight": 2.0}
# `uneven`: three packs of unequal length, of which the second of two ranks has two. `lonely`: packs of a row each, so that one rank may
# have no text or no image where the other has.
FIELDS: dict[str, dict[str, Any]] = {
    "uneven": {"packs": 3, "loss": LOSS, "workers": 2},
    "lonely": {"packs": 2, "loss": LOSS, "fill": "rows", "rows_per_pack": 1},
    "token": {"packs": 3, "loss": {"reduction": "token"}},
    "sample": {"packs": 3, "loss": {"reduction": "sample", "per": "row", "mse_weight": 0.5}},
}
STEPS = {"uneven": 2, "lonely": 6, "token": 1, "sample": 1}


def steps_of(case: str, group: World = WORLD, deepspeed: str | None = None) -> dict[str, Any]:
    """Rows, the last gradient where the engine leaves it whole, weights, and what each step's own packs are made of."""
    policy = PackReader()
    sets = {name: plans(name, 30, bad=(3, 4, 5)) for name in NAMES}
    updater = updater_of(policy, packed(GROUPS, **FIELDS[case]), sets, group=group, deepspeed=deepspeed)
    objective = updater.objective
    assert isinstance(objective, SupervisedPacks)
    made: list[list[float]] = []

    def watched(fed: Any, step: int) -> list[PackBatch]:
        batches = SupervisedPacks.batches(objective, fed, step)
        counts = [objective.counts(batch) for batch in batches]
        made.append([sum(each[name] for each in counts) for name in ("text_tokens", "latent_tokens")])
        return batches

    objective.batches = watched  # type: ignore[method-assign]
    rows = [updater.step(None, number) for number in range(STEPS[case])]
    engine = updater.engine
    return {
        "rows": rows,
        "gradient": gradient(policy).tolist() if deepspeed is None else None,  # type: ignore[arg-type]
        "weights": [x for name in engine.names for x in engine.read(name)["weight"].flatten().tolist()],
        "made": group.gather(made),
    }


def main(argv: list[str]) -> int:
    """A case is one of `FIELDS` and an engine, `uneven-zero2`."""

    def find(case: str, group: World, folder: Path) -> dict[str, Any]:
        name, engine = case.split("-")
        return steps_of(name, group, deepspeed_json(engine, group, folder))

    return find_cases(argv, find)
