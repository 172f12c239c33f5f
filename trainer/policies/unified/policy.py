"""The policy that all models share that both read and draw: texts by one half, images by the other, on one network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import ConfigError
from trainer.policies.base import GivenText
from trainer.policies.tokens.policy import TokenPolicy, widened
from trainer.policies.unified.draw import ImagePlan
from trainer.policies.unified.images import ImagePolicy
from trainer.policies.unified.trace import ImageTrace
from trainer.types import Conversation, Prompt, Replay, Rollout

_NAMED = 3  # prompts that cannot be read that a message names


class UnifiedPolicy:
    """Implements `Samples`, `Replays`, `ReadsTokens` and `NamesGroups` of `trainer.policies.base`.

    What is drawn goes by the plan: an `ImagePlan` draws images, a `TokenPlan` writes texts. What is replayed goes by the trace.

    Args:
        group_of: the part of the model by the name of a trained parameter.
    """

    def __init__(self, texts: TokenPolicy, images: ImagePolicy, group_of: Mapping[str, str]) -> None:
        self.texts, self.images, self.group_of = texts, images, group_of

    @property
    def trainable(self) -> nn.Module:
        return self.texts.trainable

    @property
    def copy(self) -> nn.Module | None:
        return self.texts.copy

    @property
    def about(self) -> str:
        return self.texts.about

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ConfigError naming the first prompts that cannot be read, and their number."""
        self.texts.check_prompts([prompt for prompt in prompts if prompt.task != "generate"])
        drawn = [prompt for prompt in prompts if prompt.task == "generate"]
        problems = []
        for prompt in drawn:
            try:
                self.images.model.read_drawing(prompt)
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            listed = "\n  ".join(problems[:_NAMED])
            raise ConfigError(f"{len(problems)} of {len(drawn)} prompts cannot be drawn. The first:\n  {listed}")

    def sample(
        self, prompts_P: Sequence[Prompt], group_size: int, seeds_B: Sequence[int], plan: Any
    ) -> Iterator[Rollout]:
        if isinstance(plan, ImagePlan):
            return self.images.sample(prompts_P, group_size, seeds_B, plan)
        return self.texts.sample(prompts_P, group_size, seeds_B, plan)

    def parts(self, rollout: Rollout) -> list[slice]:
        return self.texts.parts(rollout)  # all tokens come out of one pass, whatever they stand for

    def replay(self, rollout: Rollout, part: slice, *, reference: bool = False) -> Replay:
        trace = rollout.trace
        if not isinstance(trace, ImageTrace):
            return self.texts.replay(rollout, part, reference=reference)
        logp_BS = widened(self.images.logp(self.trainable, trace), part.stop)
        if not reference:
            return Replay(logp_BS)
        with torch.no_grad(), self.texts.reference() as network:
            return Replay(logp_BS, reference_BS=widened(self.images.logp(network, trace), part.stop))

    def read_conversation(self, conversation: Conversation) -> GivenText:
        """Raises ConfigError, naming the conversation, where it cannot be read."""
        return self.texts.read_conversation(conversation)

    def logp(self, readings_B: Sequence[Any], answers_B: Sequence[Sequence[int]], *, reference: bool = False) -> Tensor:
        return self.texts.logp(readings_B, answers_B, reference=reference)
