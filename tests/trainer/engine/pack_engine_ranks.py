"""What each rank of test_pack_engines.py runs: steps on packs of unequal length with the policies `mot` and `neo` under several ZeRO
stages. Rank 0 writes what it saw as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.pack_rows import packed
from tests.support.small_mot import four_rows, image, picture, row, small_mot, text
from tests.support.tiny_neo import make_qwen3, neo_section
from tests.trainer.engine.engine_ranks import same
from trainer.checkpoint.saver import share
from trainer.config import DistributedConfig, OptimConfig
from trainer.data.sequences import SequencePlan
from trainer.engine import Engine, build_engine
from trainer.objectives.packed import SupervisedPacks
from trainer.policies.base import Laid, Laying
from trainer.policies.registry import build_policy
from trainer.processes.distributed import World, world
from trainer.update.ema import Ema
from trainer.update.updater import Updater

OFFLOAD = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
ZERO3 = {"stage": 3, "stage3_param_persistence_threshold": 0}
STAGES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": ZERO3,
    "zero3_hybrid": {**ZERO3, "zero_hpz_partition_size": 2},
    "zero3_offload": {**ZERO3, **OFFLOAD},
}
# Fields of the policy's section. The last two compute in bfloat16, with layers computed again and parts that are not trained.
MADE: dict[str, dict[str, Any]] = {
    "mot": {},
    "neo": {},
    "mot+frozen": {"dtype": "bfloat16", "gradient_checkpointing": True, "freeze": ("connector", "language")},
    "neo+frozen": {"dtype": "bfloat16", "gradient_checkpointing": True, "train": "stage_1"},
}
STEPS, LR, DECAY = 3, 1e-3, 0.5


@dataclass(frozen=True)
class Filled:
    rows: Sequence[Laid]
    left_out: Sequence[str] = field(default_factory=tuple)

    @property
    def keys(self) -> Sequence[tuple[int, int]]:
        return [(0, place) for place in range(len(self.rows))]


class OwnPacks:
    """A rank's packs: of three a step, the first of two ranks has one, the second two."""

    def __init__(self, policy: Any, packs: Sequence[Sequence[SequencePlan]], group: World, step: int = 0) -> None:
        self.policy, self.given, self.group, self.step = policy, packs, group, step

    def packs(self) -> list[Filled]:
        first, last = (3 * rank // self.group.size for rank in (self.group.rank, self.group.rank + 1))
        own = self.given[3 * (self.step % STEPS) :][first:last]
        self.step += 1
        seeds = range(100 * self.step + 10 * first, 10_000, 10)
        return [
            Filled([self.policy.lay(plan, Laying(seed + place)) for place, plan in enumerate(pack)])
            for seed, pack in zip(seeds, own, strict=False)
        ]


def packs_of(kind: str, folder: Path) -> list[list[SequencePlan]]:
    """Three packs for each of three steps. In the second step the first has no image, and no other has a learnt text."""
    said = row("said", text("draw red", role="user"), text("blue disc", learnt=True, role="assistant"))
    if kind == "mot":
        drawn, edited, thought, long = four_rows(folder)
    else:
        one, wide = image(picture(folder, "one"), "seen"), image(picture(folder, "wide", size=(32, 16)), "seen")
        answer = {"learnt": True, "role": "assistant"}
        drawn = row("a", one, text("the disc", role="user"), text("red", **answer))
        edited = row("b", text("the", role="user"), one, wide, text("left", **answer))
        thought = row("c", wide, text("right", role="user"), text("blue disc", **answer))
        long = row("d", one, one, text("left", role="user"), text("red ring", **answer))
    return [
        *([drawn], [edited, thought, long], [drawn, thought]),
        *([said], [drawn], [edited]),
        *([long, edited], [said, said], [thought]),
    ]


def build(name: str, group: World, folder: Path, step: int = 0) -> tuple[Updater, Ema]:
    """`name`: kind:stage. All ranks have the same weights."""
    kind, stage = name.split(":")
    if kind.startswith("mot"):
        policy: Any = small_mot(**MADE[kind])
    else:
        torch.manual_seed(0)
        policy = build_policy(neo_section(folder / "qwen3", **MADE[kind]), torch.device("cpu"), keep_reference=False)
    path = None
    if (zero := STAGES[stage]) is not None:
        path = str(folder / f"{group.rank}.json")
        settings = {"zero_optimization": zero, "zero_force_ds_cpu_optimizer": False}
        Path(path).write_text(json.dumps(settings), encoding="utf-8")
    optim = OptimConfig(lr=LR, schedule="constant", weight_decay=0.1, max_grad_norm=0.5)
    given = OwnPacks(policy, packs_of(kind[:3], folder), group, step)
    engine = build_engine(policy.trainable, optim, DistributedConfig(device="cpu", deepspeed=path), group)
    objective = SupervisedPacks(policy, packed(loss={"reduction": "square"}), given, ["all"])
    return Updater(objective, engine, optim, group, max_steps=100), Ema(policy.trainable, DECAY)


def state(engine: Engine, ema: Ema) -> dict[str, dict[str, Tensor]]:
    return {name: {**engine.read(name), **ema.read(name)} for name in engine.names}


def one_case(name: str, group: World, folder: Path) -> dict[str, Any]:
    updater, ema = build(name, group, folder)
    rows = []
    for number in range(STEPS):
        rows.append(updater.step(None, number))
        ema.update()
    saved = state(updater.engine, ema)
    kept = share(updater.engine, (updater.engine, ema), group)
    shares = group.gather([sum(tensor.nbytes for kinds in kept.values() for tensor in kinds.values()), len(kept)])
    # It moves into a fresh engine, which then takes the very step that this one takes.
    fresh, fresh_ema = build(name, group, folder, STEPS)
    for each, tensors in saved.items():
        fresh.engine.write(each, tensors)
        fresh_ema.write(each, tensors)
    moved = same(saved, state(fresh.engine, fresh_ema))
    for pair in ((updater, ema), (fresh, fresh_ema)):
        pair[0].step(None, STEPS)
        pair[1].update()
    return {
        "rows": rows,
        "state": {n: {k: t.flatten().tolist() for k, t in kinds.items()} for n, kinds in saved.items()},
        "shares": shares,
        "moved": moved,
        "goes_on": same(state(updater.engine, ema), state(fresh.engine, fresh_ema)),
    }


def main(argv: list[str]) -> int:
    """`argv`: the file to write, and cases."""
    output, cases = Path(argv[0]), argv[1:]
    torch.set_num_threads(1)
    folder = output.with_name(f"{output.stem}_rank{os.environ.get('RANK', '0')}")
    folder.mkdir(parents=True)
    if any(case.startswith("neo") for case in cases):
        make_qwen3(folder / "qwen3")  # before the ranks meet: transformers lets only the first of them write
    with world(DistributedConfig(device="cpu", deepspeed="any")) as group:
        found = {case: one_case(case, group, folder) for case in cases}
        if group.is_main:
            output.write_text(json.dumps(found), encoding="utf-8")
    return 0
