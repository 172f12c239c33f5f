"""Training on what is given: a step is one optimizer step on images or texts that a file holds, without a reward."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trainer.checkpoint.saver import Kept, Stateful, TensorOwner
from trainer.config import Config
from trainer.data.overlap import settle
from trainer.evaluation.sets import load_sets
from trainer.objectives import Objective
from trainer.processes.distributed import World
from trainer.programs.base import Kind, Material, Program
from trainer.programs.session import Row, Session
from trainer.types import Prompt
from trainer.update.updater import Updater


class GivenProgram:
    """A run that is given what it trains on and asks for no reward in a step; rewards are for its evaluation alone.

    Args:
        size: images, pairs or texts of a step, over all ranks.
        counted: what these are, for the metric of how many are learnt from per second.
    """

    def __init__(self, session: Session, objective: Objective, size: int, *, counted: str = "images") -> None:
        config = session.config
        self.session, self.size, self.counted = session, size, counted
        self.updater = Updater(objective, session.engine, config.optim, session.world, config.max_steps)

    @property
    def tensors(self) -> Sequence[TensorOwner]:
        return ()

    def states(self) -> Mapping[str, Stateful]:
        """Nothing but its name: what is drawn follows from the seed and the step."""
        program = self.session.config.program
        return {"program": Kept(lambda: program, lambda before: _check_same_program(before, program))}

    def begin(self) -> None:
        """Nothing has to be made ready."""

    def end(self) -> None:
        """Nothing is left behind besides checkpoints and records."""

    def step(self) -> Row | None:
        """One optimizer step on what is given."""
        session = self.session
        started, cpu = time.perf_counter(), time.process_time()
        session.gauges.flops.take()  # an evaluation's
        row: Row = {}
        session.flight.add_given(session.step + 1, {"program": session.config.program, "batch_size": self.size}, row)
        row |= self.updater.step(None, session.step)
        session.ema.update(self.decay())
        session.step += 1
        updated = time.perf_counter()
        row |= session.gauges.metrics(updated - started)
        row |= {
            "step": session.step,
            "time/update": updated - started,
            "time/total": updated - started,
            "time/cpu": time.process_time() - cpu,
            f"{self.counted}_per_s": self.size / (updated - started),
        }
        session.totals.add(row)
        return dict(row)

    def decay(self) -> float:
        """The decay of the weights' average in this step."""
        return self.session.ema.decay


def _check_same_program(before: str, now: str) -> None:
    if before != now:
        raise ValueError(f"program was {before}, now {now}")


def given_material(config: Config, prompts: Sequence[Prompt]) -> Material:
    """The texts of what is given, without those that are held out, too. Raises ConfigError, DataError."""
    sets = load_sets(config, ())
    overlap = settle(config, prompts, [prompt for each in sets for prompt in each.prompts])
    left_out = overlap.ids()
    return Material([prompt for prompt in prompts if prompt.id not in left_out], sets, overlap, len(prompts))


def by_given(kinds: Mapping[str, Kind]) -> Kind:
    """One program for all that policies are trained on (`PolicySection.given`): what a step is fed differs, the rest does not."""

    def kind_of(config: Config) -> Kind:
        return kinds[config.policy.given]

    def read(config: Config) -> Any:
        return kind_of(config).read(config)

    def deal(config: Config, material: Any, world: World) -> Any:
        return kind_of(config).deal(config, material, world)

    def policy(config: Config, device: torch.device) -> Any:
        return kind_of(config).policy(config, device)

    def build(session: Session, material: Any, source: Any) -> Program:
        return kind_of(session.config).build(session, material, source)

    return Kind(read, deal, policy, build)
