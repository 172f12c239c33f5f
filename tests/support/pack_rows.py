"""Rows of packs as plans in memory, groups of them, and steps on them with the double that reads packs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.support.pack_reader import LaidRow, PackReader
from tests.support.tiny_updates import WORLD
from trainer.config import DistributedConfig, OptimConfig, PackedConfig
from trainer.config.packed import PackGroupConfig, PackSetConfig
from trainer.data.packing.groups import PackGroup, open_groups
from trainer.data.packing.lanes import Lanes
from trainer.data.prompts.checks import DataError
from trainer.data.sequences import ImageItem, Plans, SequencePlan, TextItem
from trainer.engine import build_engine
from trainer.objectives.packed import SupervisedPacks
from trainer.policies.base import Laying
from trainer.processes.distributed import World
from trainer.update.updater import Updater

BAD = "bad"


class ListedPlans:
    """Implements `Plans`: rows that are there. A row may be BAD: a file's mistake."""

    def __init__(self, name: str, rows: Sequence[SequencePlan | str]) -> None:
        self.name, self.rows = name, rows

    def __len__(self) -> int:
        return len(self.rows)

    def plan(self, number: int) -> SequencePlan:
        row = self.rows[number]
        if isinstance(row, str):
            raise DataError(f"{self.name}:{number + 1}: txt is missing; give it")
        return row


def drawing(name: str, number: int) -> SequencePlan:
    """A text, an image: between 5 + 4 and 24 + 4 tokens."""
    text = TextItem("draw" + "o" * (7 * number % 20), droppable=True)
    return SequencePlan(f"{name}:{number + 1}", (text, ImageItem(str(number), "drawn")))


def writing(name: str, number: int) -> SequencePlan:
    """A question, a seen image, a learnt answer."""
    items = (
        TextItem("what"),
        ImageItem(str(number), "seen", droppable=True),
        TextItem("b" * (1 + number % 9), learnt=True),
    )
    return SequencePlan(f"{name}:{number + 1}", items)


def thinking(name: str, number: int) -> SequencePlan:
    """A text, a learnt text, an image."""
    items = (
        TextItem("think", droppable=True),
        TextItem("ab" * (1 + number % 4), learnt=True),
        ImageItem(str(number), "drawn"),
    )
    return SequencePlan(f"{name}:{number + 1}", items)


MAKE = {"drawings": drawing, "writings": writing, "thoughts": thinking}


def plans(name: str, count: int, *, bad: Sequence[int] = ()) -> ListedPlans:
    """`count` rows of the kind that `name` begins with; those of `bad` are wrong."""
    make = MAKE[name.partition("_")[0]]
    return ListedPlans(name, [BAD if n in bad else make(name, n) for n in range(count)])


def packed(groups: Sequence[dict[str, Any]] | None = None, **fields: Any) -> PackedConfig:
    """A section of small packs. Of each group the name is what its one set is called, too."""
    sections = [
        {"sets": [{"name": each["name"], "path": "rows.json", "format": "t2i"}], **each}
        for each in groups or [{"name": "drawings"}, {"name": "writings"}]
    ]
    usual = {"expected_tokens": 60, "max_tokens": 80, "buffer_below": 40, "buffer_size": 3, "workers": 0}
    return PackedConfig.model_validate({"groups": sections, **usual, **fields})


def groups_of(config: PackedConfig, sets: dict[str, Plans], seed: int = 1) -> list[PackGroup]:
    """The groups of the section, with these sets by name."""

    def open_plans(group: PackGroupConfig, each: PackSetConfig) -> Plans:
        return sets[each.name or ""]

    return open_groups(config.groups, open_plans, config, seed)


def lanes_of(
    config: PackedConfig,
    sets: dict[str, Plans],
    policy: PackReader | None = None,
    share: tuple[int, int] = (0, 1),
    seed: int = 1,
) -> Lanes[LaidRow]:
    reader = policy or PackReader()
    dropout, noise = config.dropout, config.noise

    def lay(plan: SequencePlan, drawn: int) -> LaidRow:
        return reader.lay(
            plan,
            Laying(drawn, dropout.text, dropout.clean, dropout.seen, noise.shift, noise.copies),
        )

    return Lanes(config, groups_of(config, sets, seed), seed, lay, share)


def updater_of(
    policy: PackReader,
    config: PackedConfig,
    sets: dict[str, Plans],
    *,
    lr: float = 1e-2,
    group: World = WORLD,
    deepspeed: str | None = None,
) -> Updater:
    """Steps on this rank's packs."""
    optim = OptimConfig(lr=lr, schedule="constant", max_grad_norm=1e9)
    lanes = lanes_of(config, sets, policy, (group.rank, group.size))
    engine = build_engine(policy.trainable, optim, DistributedConfig(device="cpu", deepspeed=deepspeed), group)
    return Updater(
        SupervisedPacks(policy, config, lanes, [group.name for group in config.groups]),
        engine,
        optim,
        group,
        max_steps=100,
    )
