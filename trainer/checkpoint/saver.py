"""Saves a run and takes it up again: tensors by parameter name, everything else as JSON under a name of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.checkpoint.layout import CheckpointError, begins_at, set_aside_after
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.writing import CheckpointWriter
from trainer.config import Config
from trainer.config.base import UserError
from trainer.processes.distributed import World
from trainer.processes.pages import large_blocks_apart


class Stateful(Protocol):
    """A part of a run that goes on after a restart from where it was saved. The trainer calls both methods on all ranks."""

    def state_dict(self) -> Any:
        """Return what a checkpoint has to keep: JSON, the same on all ranks."""
        ...

    def load_state_dict(self, state: Any, /) -> None:
        """Take over what `state_dict` returned. Raises ValueError where it does not fit this configuration."""
        ...


@dataclass(frozen=True)
class Kept:
    """A Stateful made of two functions, for a value that is an attribute of something larger."""

    give: Callable[[], Any]
    take: Callable[[Any], None]

    def state_dict(self) -> Any:
        return self.give()

    def load_state_dict(self, state: Any, /) -> None:
        self.take(state)


class TensorOwner(Protocol):
    """Holds tensors of parameters, each of a `kind` such as the weight, a moment of the optimizer or an average."""

    def read(self, name: str, *, keep: bool = True) -> Mapping[str, Tensor]:
        """Whole float32 copies on the CPU, by kind. All ranks take part; one that does not `keep` them gets none."""
        ...

    def write(self, name: str, tensors: Mapping[str, Tensor], /) -> None:
        """Take over, of all tensors that a checkpoint has of the parameter, those of its own kinds."""
        ...


class Trained(TensorOwner, Protocol):
    """The owner of the parameters themselves: the engine."""

    @property
    def names(self) -> Sequence[str]: ...

    def numel(self, name: str) -> int: ...


class Saver:
    """Writes a run's checkpoints in the background, knows which of them stay, and restores one.

    Args:
        note: told what a person should know.
        trained: owns the parameters that are saved. Its tensors are read first.
        tensors: own further tensors of the same parameters.
        states: what else is saved, each under its name in `state.json`. They are restored in this order, after the tensors.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        *,
        note: Callable[[str], None],
        trained: Trained,
        tensors: Sequence[TensorOwner] = (),
        states: Mapping[str, Stateful],
    ) -> None:
        self._config, self._world, self._note = config, world, note
        self._trained, self._tensors = trained, (trained, *tensors)
        self._states = states
        folder = config.run_dir / "checkpoints"
        self._retention = Retention(folder, config.checkpoint)
        self._writer = CheckpointWriter(folder, world, self._retention)
        self._keeps_best = config.checkpoint.keep_best is not None
        self._saved = ""  # the state that was saved last
        self._observed = False  # a row since the last look at which checkpoints stay
        self._blocked_s = 0.0

    def observe(self, row: dict[str, float | None]) -> None:
        """Take note of the metric that tells the best checkpoints; add to the row how long saving held training up.

        Raises:
            ConfigError: checkpoint.keep_best names a metric that this run does not measure.
        """
        if self._blocked_s:
            row["time/checkpoint"], self._blocked_s = self._blocked_s, 0.0
        self._retention.observe(row)
        self._observed = self._keeps_best

    def save(self, step: int, pending: int | None = None) -> None:
        """Copy the state after `step` steps and begin to write it; weights that are not finite stay unwritten.

        Args:
            pending: see `Retention.apply`.

        Raises:
            CheckpointError: the save before failed, on any rank.
        """
        started = time.perf_counter()
        tree = {"step": step, "ranks": self._world.size, "begun_at": begins_at(self._config.resume)}
        state = json.dumps(tree | {name: each.state_dict() for name, each in self._states.items()}, indent=1)
        if state != self._saved:  # the end of a run may come right after a save
            parameters = self._share()
            if parameters is None:
                self._note(f"the weights after step {step} are not finite: they were not saved")
                return
            self._writer.begin(step, parameters, _random_state(self._world), state, pending)
            self._saved = state
        self._blocked_s += time.perf_counter() - started

    def poll(self, pending: int | None) -> None:
        """At a step boundary: raise CheckpointError on all ranks when the save on its way failed on any.

        A step is saved before it is evaluated, so what is best may have changed since.

        Args:
            pending: see `Retention.apply`.
        """
        self._writer.poll()
        if self._observed and self._writer.idle:
            self._observed = False
            if self._world.is_main:
                self._retention.apply(pending)

    def wait(self) -> None:
        """Until what was begun is written. Raises as `poll` does."""
        self._writer.wait()

    def close(self) -> None:
        """For any end of the run, an exception's too: let the save on its way end where it can."""
        self._writer.close()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over everything a checkpoint holds; those of later steps are set aside until a new one is whole.

        Raises:
            CheckpointError: it does not fit this configuration, such as one of another model.
            UserError: a state says in its own words why it cannot go on.
        """
        try:
            self._restore_tensors(checkpoint)
            for name, each in self._states.items():
                if name not in checkpoint.state:
                    raise ValueError(f"it holds no {name}, so it is of another program than this")
                each.load_state_dict(checkpoint.state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise CheckpointError(
                f"the checkpoint of step {checkpoint.step} does not fit this config ({error}): put back what has changed of "
                "it (config.yaml in the run folder has it), or choose another run_name"
            ) from error
        checkpoint.close()
        self._retention.forget_after(checkpoint.step)
        self._retention.began_at = checkpoint.step
        if self._world.is_main:
            set_aside_after(self._config.run_dir / "checkpoints", checkpoint.step)

    def _share(self) -> dict[str, dict[str, Tensor]] | None:
        """This rank's share of the parameters; None when a weight is not finite on some rank."""
        kept = share(self._trained, self._tensors, self._world)
        finite = all(bool(kinds["weight"].isfinite().all()) for kinds in kept.values())
        return None if self._world.any(not finite) else kept

    def _restore_tensors(self, checkpoint: Checkpoint) -> None:
        if different := sorted(set(self._trained.names) ^ set(checkpoint.names)):
            raise ValueError(f"policy: {len(different)} trained parameters differ, the first is {different[0]!r}")
        for name in self._trained.names:
            tensors = checkpoint.read(name)
            for owner in self._tensors:
                owner.write(name, tensors)
        random_state = checkpoint.random_state(self._world.rank)
        torch.set_rng_state(random_state["cpu"])
        if "cuda" in random_state and self._world.device.type == "cuda":
            torch.cuda.set_rng_state(random_state["cuda"], self._world.device)


def share(trained: Trained, tensors: Sequence[TensorOwner], world: World) -> dict[str, dict[str, Tensor]]:
    """This rank's share of the parameters, all their tensors by kind. All ranks together.

    Every rank reads every parameter, because reading may be a collective. Each goes to the rank with the fewest elements so far,
    which all ranks compute alike; the others copy nothing. So a rank holds its share, and one or two tensors that are on their way.
    """
    loads: list[int] = [0] * world.size
    kept: dict[str, dict[str, Tensor]] = {}
    with large_blocks_apart():
        for name in trained.names:
            owner = loads.index(min(loads))
            loads[owner] += trained.numel(name)
            found: dict[str, Tensor] = {}
            for each in tensors:
                found |= each.read(name, keep=owner == world.rank)
            if owner == world.rank:
                kept[name] = {kind: tensor.contiguous() for kind, tensor in found.items()}
    return kept


def _random_state(world: World) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    return states
