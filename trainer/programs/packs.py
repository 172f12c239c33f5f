"""Supervised training on packs: rows of texts and images, side by side in one sequence, for a policy that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from trainer.checkpoint.saver import Kept, Stateful
from trainer.config import Config, ConfigError, PackedConfig
from trainer.config.base import UserError
from trainer.data.formats.groups import group_notes, read_groups
from trainer.data.overlap import Settled
from trainer.data.packing.groups import PackGroup
from trainer.data.packing.lanes import Lanes
from trainer.data.sequences import SequencePlan
from trainer.evaluation.sets import load_sets
from trainer.objectives.packed import SupervisedPacks, by_group
from trainer.policies.base import Laid, Laying, Policy, ReadsPacks
from trainer.processes.distributed import World
from trainer.programs.base import Material
from trainer.programs.given import GivenProgram
from trainer.programs.held_out_packs import HeldOut
from trainer.programs.session import Row, Session
from trainer.types import Prompt, StopTrainingError

TRIED = 100  # rows of a group that are tried before it is given up


@dataclass(frozen=True)
class PackMaterial(Material):
    """The rows of a run; its prompts are those of its evaluation alone."""

    groups: Sequence[PackGroup] = ()
    said: Sequence[str] = ()  # of the files that name the rows, and of the instructions before them

    @property
    def notes(self) -> Sequence[str]:
        """What the files have to say, how many rows are trained on and held out; and that nobody compared them with the evaluation."""
        found = list(self.said)
        found += [
            f"packed: {each.name}: {len(each)} rows, {len(list(each.held_out()))} held out" for each in self.groups
        ]
        if self.sets:
            found.append("packed: rows are not compared with the held-out prompts of the evaluation; keep them apart")
        return found

    @property
    def checked(self) -> Sequence[Prompt]:
        return ()


def unusable_rows(group: PackGroup, seed: int) -> tuple[int, list[str]]:
    """How many rows of a group were looked at, as files and before any policy reads them, and what is wrong with some of them."""
    found = []
    tried = min(len(group), TRIED)
    for position in range(tried):
        plans, number = group.row(position, seed)
        try:
            plans.plan(number)
        except UserError as error:
            found.append(str(error))
    return tried, found


def read_rows(config: Config) -> PackMaterial:
    """The files of the rows, opened. Raises ConfigError, DataError."""
    packed = packed_of(config)
    groups = read_groups(packed, config.seed)
    return PackMaterial((), load_sets(config, ()), Settled(), 0, groups, group_notes(packed))


def deal_rows(config: Config, material: PackMaterial, world: World) -> Sequence[PackGroup]:
    packed = packed_of(config)
    if packed.packs < world.size:
        raise ConfigError(
            f"packed.packs = {packed.packs} packs a step leave one of {world.size} ranks without any; make it {world.size} or more"
        )
    return material.groups


def build_packs(session: Session, material: PackMaterial, groups: Sequence[PackGroup]) -> PackProgram:
    return PackProgram(session, pack_reader(session.policy, session.config), groups)


def pack_reader(policy: Policy, config: Config) -> ReadsPacks:
    """The policy, once it is known that it can be trained on packs. Raises ConfigError."""
    if not isinstance(policy, ReadsPacks):
        raise ConfigError(
            f"program = {config.program} trains on packs, which policy.type = {config.policy.type} cannot read"
        )
    return policy


def packed_of(config: Config) -> PackedConfig:
    assert config.packed is not None, "the configuration has checked it"
    return config.packed


def lay_training(policy: ReadsPacks, packed: PackedConfig, plan: SequencePlan, seed: int) -> Laid:
    """A row as it is trained on: conditions left out and images noised by chance. Raises UserError where it cannot be used."""
    dropout, noise = packed.dropout, packed.noise
    return policy.lay(
        plan,
        Laying(
            seed,
            drop_text=dropout.text,
            drop_clean=dropout.clean,
            drop_seen=dropout.seen,
            shift=noise.shift,
            copies=noise.copies,
        ),
    )


class PackProgram(GivenProgram):
    """A run on packs. Every row that cannot be used is named once; the losses of the rows held out are measured before the first
    step, with every evaluation, and after the last, with the averaged weights."""

    def __init__(self, session: Session, policy: ReadsPacks, groups: Sequence[PackGroup]) -> None:
        config, world = session.config, session.world
        self.policy, self.groups, self.packed = policy, groups, packed_of(config)
        self.lanes = Lanes[Laid](
            self.packed, groups, config.seed, partial(lay_training, policy, self.packed), (world.rank, world.size)
        )
        session.closing.callback(self.lanes.close)
        self.objective = SupervisedPacks(policy, self.packed, self.lanes, [group.name for group in groups])
        self.held_out = HeldOut(self.objective, groups, config.seed)
        super().__init__(session, self.objective, self.packed.packs, counted="packs")
        self.dealt = self.lanes.state_dict()  # after the last finished step
        self._named: set[str] = set()

    def states(self) -> Mapping[str, Stateful]:
        """Also what each lane has drawn, and how many rows there were, so that changed files are noticed."""
        rows = {group.name: [len(each) for each in group.sets] for group in self.groups}
        return {
            **super().states(),
            "lanes": Kept(self._gathered, self._go_on),
            "rows": Kept(lambda: rows, lambda before: self._check_same_rows(before, rows)),
        }

    def begin(self) -> None:
        """See that every group has a row that can be used, and measure the losses before training."""
        session = self.session
        if session.step or session.row is None:
            return
        for number, group in enumerate(self.groups):
            self._try_first(number, group)
        session.row |= self.held_out_losses()

    def step(self) -> Row | None:
        try:
            row = super().step()
        except StopTrainingError:
            self.lanes.restore(self.dealt)  # the step was not made: whoever goes on from what is saved makes it
            raise
        assert row is not None
        self.dealt = self.lanes.state_dict()
        if row["packed/left_out"]:  # the same number on all ranks
            self._name_left_out()
        config = self.session.config
        tokens = row["packed/tokens"] or 0.0
        row["packed/fill"] = tokens / (self.packed.packs * self.packed.max_tokens)
        row["time/packs"] = max(self.session.world.gather(self.lanes.waited_s))
        row["tokens_per_s"] = tokens / (row["time/update"] or 1.0)
        for loss, counted in (("loss/ce", "packed/text_tokens"), ("loss/mse", "packed/latent_tokens")):
            if not row[counted]:
                row[loss] = None  # nothing of the kind was in the step
        row |= {f"packed/{name}": value for name, value in by_group(row, self.objective.groups).items()}
        if self.session.step % config.evaluation.every == 0 or self.session.step == config.max_steps:
            row |= self.held_out_losses()
        return row

    def held_out_losses(self) -> dict[str, float | None]:
        """See `HeldOut.losses`. All ranks together."""
        session = self.session
        with torch.no_grad(), session.ema.applied():
            row = self.held_out.losses(session.world)
        if row:
            self._name_left_out()
        return row

    def _try_first(self, number: int, group: PackGroup) -> None:
        problem = ""
        for position in range(min(len(group), TRIED)):
            try:
                self.lanes.read((number, position))
            except UserError as error:
                problem = str(error)
            else:
                return
        raise ConfigError(
            f"packed.groups: of {group.name} none of the first {TRIED} rows can be used, the last: {problem}"
        )

    def _gathered(self) -> list[Any]:
        """The states of all ranks' lanes, in order."""
        return [lane for own in self.session.world.gather(self.dealt) for lane in own]

    def _go_on(self, state: Sequence[Mapping[str, Any]]) -> None:
        self.lanes.load_state_dict(state)
        self.dealt = self.lanes.state_dict()

    def _name_left_out(self) -> None:
        """Say of every row that was met and cannot be used why, once. All ranks together."""
        own = list(dict.fromkeys(self.objective.left_out))
        self.objective.left_out.clear()
        for told in self.session.world.gather(own):
            for sentence in told:
                if sentence not in self._named:
                    self._named.add(sentence)
                    self.session.recorder.note(f"left out: {sentence}")

    def _check_same_rows(self, before: Any, now: Any) -> None:
        if before != now:
            self.session.recorder.note(
                f"packed: rows of each set were {before} when the checkpoint was written, now {now}: steps from here on draw others"
            )
