"""Training on what is given: a step is one optimizer step of a supervised objective, flow matching on images with texts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from trainer.checkpoint.saver import Kept, Stateful, TensorOwner
from trainer.config import Config, ConfigError, SftLossConfig
from trainer.data.captions import CaptionData, caption_prompts
from trainer.data.overlap import settle
from trainer.evaluation import load_sets
from trainer.objectives import Objective, Supervised
from trainer.policies.base import Denoises, Policy
from trainer.policies.registry import build_policy
from trainer.processes.distributed import World
from trainer.programs.base import Kind, Material
from trainer.programs.session import Row, Session
from trainer.types import Prompt
from trainer.update.updater import Updater


class GivenProgram:
    """A run that is given what it trains on and asks for no reward in a step; rewards are for its evaluation alone.

    Args:
        size: images or pairs of a step, over all ranks.
    """

    def __init__(self, session: Session, objective: Objective, size: int) -> None:
        config = session.config
        self.session, self.size = session, size
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
            "images_per_s": self.size / (updated - started),
        }
        session.totals.add(row)
        return dict(row)

    def decay(self) -> float:
        """The decay of the weights' average in this step."""
        return self.session.ema.decay


def _check_same_program(before: str, now: str) -> None:
    if before != now:
        raise ValueError(f"program was {before}, now {now}")


def read_material(config: Config) -> Material:
    """The texts of the images. Raises ConfigError, DataError."""
    return given_material(config, caption_prompts(_given(config)))


def given_material(config: Config, prompts: Sequence[Prompt]) -> Material:
    """The texts of what is given, without those that are held out, too. Raises ConfigError, DataError."""
    sets = load_sets(config, ())
    overlap = settle(config, prompts, [prompt for each in sets for prompt in each.prompts])
    left_out = overlap.ids()
    return Material([prompt for prompt in prompts if prompt.id not in left_out], sets, overlap, len(prompts))


def _deal(config: Config, material: Material, world: World) -> CaptionData:
    data = CaptionData(_given(config), config.seed)
    data.leave_out(material.overlap.texts())
    return data


def _build(session: Session, material: Material, data: CaptionData) -> GivenProgram:
    config, world = session.config, session.world
    given = _given(config)
    policy = denoiser(session.policy, config)
    objective = Supervised(policy, given, data, config.seed, share=(world.rank, world.size))
    return GivenProgram(session, objective, given.batch_size)


def denoiser(policy: Policy, config: Config) -> Denoises:
    """The policy, once it is known that it can be trained on images. Raises ConfigError."""
    if not isinstance(policy, Denoises):
        raise ConfigError(
            f"program = {config.program} trains on images, which policy.type = {config.policy.type} cannot"
        )
    return policy


def _given(config: Config) -> SftLossConfig:
    assert config.sft is not None, "the configuration has checked it"
    return config.sft


KIND = Kind(
    read_material, _deal, lambda config, device: build_policy(config.policy, device, keep_reference=False), _build
)
