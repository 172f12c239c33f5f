"""The policy: packs are read, images drawn by the arithmetic of all rectified flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from trainer.data.sequences import SequencePlan
from trainer.policies.base import Laying, PackOutput
from trainer.policies.unified.mot.lay import LaidRow
from trainer.policies.unified.mot.model import MotModel
from trainer.types import Prompt


class MotPolicy:
    """Implements `ReadsPacks` and `NamesGroups` of `trainer.policies.base`."""

    def __init__(self, model: MotModel, *, keep_reference: bool) -> None:
        self.model = model

    @property
    def trainable(self) -> nn.Module:
        return self.model.network

    @property
    def group_of(self) -> Mapping[str, str]:
        """`matrices`: the two-dimensional weights inside layers, which Muon can take; `rest`: all others."""
        return {
            name: "matrices" if ".layers." in name and parameter.dim() == 2 else "rest"
            for name, parameter in self.trainable.named_parameters()
            if parameter.requires_grad
        }

    @property
    def about(self) -> str:
        return self.model.about

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """All texts can be read."""

    def lay(self, plan: SequencePlan, laying: Laying) -> LaidRow:
        return self.model.lay(plan, laying)

    def read(self, pack: Sequence[LaidRow]) -> PackOutput:
        return self.model.read(pack)
