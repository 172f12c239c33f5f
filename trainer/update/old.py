"""The sampling policy of objectives that draw their samples with a moving average of the trained weights."""

from __future__ import annotations

from torch import nn

from trainer.config import ObjectiveConfig
from trainer.config.objective import AveragedSection
from trainer.update.ema import Ema
from trainer.update.schedule import old_decay


class OldPolicy(Ema):
    """A moving average of the trained weights whose decay changes over the run (`trainer.update.schedule.old_decay`).

    Attributes:
        task: the one whose samples it draws; empty for a policy that has one kind of sample.
    """

    def __init__(self, module: nn.Module, config: AveragedSection, task: str = "") -> None:
        super().__init__(module, config.old_decay, kind="old")
        self.config, self.task = config, task

    def follow(self, step: int) -> None:
        """Move towards the weights after training step `step` (from 0)."""
        self.update(old_decay(self.config, step))


def old_policy(module: nn.Module, config: ObjectiveConfig, task: str = "") -> OldPolicy | None:
    """The sampling policy of an objective; None where samples are drawn with the trained weights."""
    if isinstance(config, AveragedSection) and config.old_decay:
        return OldPolicy(module, config, task)
    return None
