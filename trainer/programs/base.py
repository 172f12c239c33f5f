"""What a program is: what a run reads, what its step is, and what of it a checkpoint keeps. All else is the session's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from trainer.checkpoint.saver import Stateful, TensorOwner
from trainer.config import Config
from trainer.data.overlap import Settled
from trainer.evaluation.sets import EvaluationSet
from trainer.processes.distributed import World
from trainer.programs.session import Row, Session
from trainer.types import Prompt


@dataclass(frozen=True)
class Material:
    """The texts of a run.

    Attributes:
        prompts: what is trained on, without what is left out because it is held out, too.
        sets: what is evaluated on.
        overlap: what the two had in common.
        num_train: the training prompts, those included that are left out.
    """

    prompts: Sequence[Prompt]
    sets: Sequence[EvaluationSet]
    overlap: Settled
    num_train: int

    @property
    def notes(self) -> Sequence[str]:
        """What is to be said of the texts before training, besides."""
        return ()

    @property
    def checked(self) -> Sequence[Prompt]:
        """Training prompts that the policy must be able to take, or the run does not begin."""
        return self.prompts

    @property
    def heldout(self) -> list[Prompt]:
        """The prompts of all sets."""
        return [prompt for each in self.sets for prompt in each.prompts]


@dataclass(frozen=True)
class Kind:
    """How a program is made, in the order of a start, so that each mistake is found before the next, slower part.

    Attributes:
        read: the texts, before anything else; it raises ConfigError or DataError.
        deal: this rank's share of what is trained on, before the model is loaded; it raises ConfigError or DataError.
        policy: the policy, on a device; it raises ConfigError.
        build: the program, from the session, the texts, and what `deal` returned.
    """

    read: Callable[[Config], Any]
    deal: Callable[[Config, Any, World], Any]
    policy: Callable[[Config, torch.device], Any]
    build: Callable[[Session, Any, Any], Program]


class Program(Protocol):
    """A run of one kind."""

    @property
    def session(self) -> Session: ...

    @property
    def tensors(self) -> Sequence[TensorOwner]:
        """Owners of tensors, besides engine and average, that a checkpoint keeps."""
        ...

    def states(self) -> Mapping[str, Stateful]:
        """What else a checkpoint keeps of it, besides the session's."""
        ...

    def begin(self) -> None:
        """Called once, before the first step of a start, when the state of an earlier one is taken over."""
        ...

    def end(self) -> None:
        """Called when all steps of the run are made and saved, for what it leaves behind besides checkpoints and records."""
        ...

    def step(self) -> Row | None:
        """Take one training step and count it in the session. Returns its row of metrics.jsonl.

        None: asked to stop, and the step was not made. Nothing has changed then, and the next start makes it.

        Raises:
            StopTrainingError: the run must stop at this step.
        """
        ...
