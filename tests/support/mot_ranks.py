"""A step of a small Mixture-of-Transformers on packs of one row each; `main` is run on two ranks, the rest with a world of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tests.support.pack_rows import ListedPlans, packed, updater_of
from tests.support.rank_cases import deepspeed_json, find_cases
from tests.support.small_mot import four_rows, image, row, small_mot, text
from tests.support.tiny_updates import WORLD
from trainer.policies.base import PackOutput
from trainer.policies.unified.mot.lay import LaidRow
from trainer.processes.distributed import World

WEIGHTS = {"talks": 2.0, "pictures": 1.0, "both": 1.0}
STEPS = 5
FIELDS: dict[str, Any] = {
    **{
        "packs": 2,
        "fill": "rows",
        "rows_per_pack": 1,
        "expected_tokens": 200,
        "max_tokens": 400,
        "max_row_tokens": 400,
    },
    **{"noise": {"copies": 2, "shift": 3.0}, "loss": {"ce_weight": 2.0}},
}


def steps_of(folder: Path, group: World = WORLD, deepspeed: str | None = None) -> dict[str, Any]:
    """Rows, the weights behind them, and what each pack of this rank held: words that are learnt, and latents."""
    plans = four_rows(folder)
    seen = plans[0].items[1]
    assert not hasattr(seen, "text")
    sets = {
        "talks": [row("talk", text("draw red"), text("green disc", learnt=True))],
        "pictures": [row("picture", image(seen.path, "drawn"))],
        "both": list(plans),
    }
    policy, held = small_mot(), []
    read = policy.read

    def watched(pack: Sequence[LaidRow]) -> PackOutput:
        held.append((sum(sum(each.learnt) for each in pack), sum(each.drawn for each in pack)))
        return read(pack)

    policy.read = watched  # type: ignore[method-assign]
    updater = updater_of(
        cast(Any, policy),
        packed([{"name": name, "weight": weight} for name, weight in WEIGHTS.items()], **FIELDS),
        {name: ListedPlans(name, rows) for name, rows in sets.items()},
        group=group,
        deepspeed=deepspeed,
    )
    rows = [updater.step(None, number) for number in range(STEPS)]
    engine = updater.engine
    weights = {name: engine.read(name)["weight"].flatten().tolist() for name in engine.names}
    return {"rows": rows, "weights": weights, "held": held}


def main(argv: list[str]) -> int:
    """Cases are engines."""

    def find(engine: str, group: World, folder: Path) -> dict[str, Any]:
        pictures = folder / f"pictures{group.rank}"
        pictures.mkdir(exist_ok=True)
        return steps_of(pictures, group, deepspeed_json(engine, group, folder))

    return find_cases(argv, find)
