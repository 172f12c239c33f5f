"""The policy `neo`: it reads rows of packs, and writes answers as every policy that writes does.

Axes: B rows, S tokens of an answer, T learnt tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from machine.transfers import sent
from trainer.data.sequences import SequencePlan
from trainer.policies.base import GivenText, Laying, PackOutput
from trainer.policies.tokens.draw import Reading, TokenPlan
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.trace import AnswerTrace
from trainer.policies.unified.neo.attending import attend_packs
from trainer.policies.unified.neo.drawer import NeoDrawer
from trainer.policies.unified.neo.laying import LaidRow, lay
from trainer.policies.unified.neo.model import NeoModel
from trainer.policies.unified.neo.rows import packed
from trainer.policies.unified.neo.stages import part_of
from trainer.types import Conversation, Prompt, Replay, Rollout


class NeoPolicy:
    """Implements `ReadsPacks`, `Samples`, `Replays`, `ReadsTokens` and `NamesGroups` of `trainer.policies.base`."""

    def __init__(self, model: NeoModel, *, keep_reference: bool) -> None:
        self.model = model
        self.texts = TokenPolicy(model, keep_reference=keep_reference, drawer=NeoDrawer(model), logits=_answer_logits)

    @property
    def trainable(self) -> nn.Module:
        return self.model.network

    @property
    def copy(self) -> nn.Module | None:
        return self.texts.copy

    @property
    def about(self) -> str:
        return self.model.about

    @property
    def group_of(self) -> Mapping[str, str]:
        """`patches`, `new_layers`, `rows_columns` and `language` (`trainer.policies.unified.neo.stages.part_of`)."""
        extra = self.model.network.geometry.extra_layers
        return {name: part_of(name, extra) for name, _ in self.trainable.named_parameters()}

    def lay(self, plan: SequencePlan, laying: Laying) -> LaidRow:
        """The row as tokens, images loaded. Raises ConfigError, naming the row, where it cannot be read."""
        return lay(plan, laying, self.model.processor)

    def read(self, pack: Sequence[LaidRow]) -> PackOutput:
        """The cross-entropy of each learnt token under the present weights."""
        model = self.model
        given, layout = packed([laid.row for laid in pack], model.device)
        places_T = sent(torch.cat([laid.learnt_T for laid in pack]).nonzero()[:, 0], model.device)
        with model.computing():
            # The token before says what it expects at each place.
            logits_TV = model.network(given, attend_packs(layout, model.way), places_T - 1)
        target_T = given.ids_N.index_select(0, places_T)
        error_T = functional.cross_entropy(logits_TV.float(), target_T, reduction="none")
        return PackOutput(error_T, error_T.new_zeros(0))

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ConfigError naming the first prompts that cannot be read, and their number."""
        self.texts.check_prompts(prompts)

    def sample(
        self, prompts_P: Sequence[Prompt], group_size: int, seeds_B: Sequence[int], plan: TokenPlan
    ) -> Iterator[Rollout]:
        return self.texts.sample(prompts_P, group_size, seeds_B, plan)

    def parts(self, rollout: Rollout) -> list[slice]:
        return self.texts.parts(rollout)

    def replay(self, rollout: Rollout, part: slice, *, reference: bool = False) -> Replay:
        return self.texts.replay(rollout, part, reference=reference)

    def read_conversation(self, conversation: Conversation) -> GivenText:
        """Raises ConfigError, naming the conversation, where it cannot be read."""
        return self.texts.read_conversation(conversation)

    def logp(
        self, readings_B: Sequence[Reading], answers_B: Sequence[Sequence[int]], *, reference: bool = False
    ) -> Tensor:
        return self.texts.logp(readings_B, answers_B, reference=reference)


def _answer_logits(model: NeoModel, network: nn.Module, trace: AnswerTrace) -> Tensor:
    return model.answer_logits(network, trace)
