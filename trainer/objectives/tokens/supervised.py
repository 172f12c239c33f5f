"""The supervised loss of texts: cross-entropy on what the assistant says. Axes: B conversations, S tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch

from machine.transfers import sent
from trainer.config.given_texts import ConversationsConfig
from trainer.losses import Stats, Weights, weigh
from trainer.objectives.base import Term
from trainer.objectives.tokens.given import GivenRows, Rows, by_length, learnt_mask, shortened
from trainer.policies.base import GivenText, ReadsTokens
from trainer.types import Conversation


@dataclass(frozen=True)
class TextBatch:
    """A micro-batch of B conversations: one forward pass, padded to its longest.

    Attributes:
        texts: of like length.
        skipped: rows of the step that could not be read, told with its first micro-batch.
        weight: of every conversation.
    """

    texts: Sequence[GivenText]
    skipped: int = 0
    weight: float = 1.0
    kind: ClassVar[str] = "conversations"
    update: ClassVar[None] = None

    def to(self, device: torch.device) -> Self:
        return self  # the policy moves what it reads

    def weightless(self) -> Self:
        return replace(self, weight=0.0, skipped=0)


class SupervisedTokens:
    """Cross-entropy on the tokens of the assistant's turns, each weighed as `reduction` says (`trainer.losses.weigh`).

    Args:
        share: (r, n): this is rank r of n.

    Raises:
        ConfigError: the first conversation cannot be used, or a step's cannot be shared among the ranks.
    """

    requires: ClassVar[type] = ReadsTokens
    leads: ClassVar[Sequence[str]] = ("weight",)

    def __init__(
        self,
        policy: ReadsTokens,
        config: ConversationsConfig,
        rows: Rows[Conversation],
        *,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.policy, self.config = policy, config
        self.given = GivenRows(rows, self.read, config.batch_size, share)
        self.given.check_first()

    def read(self, conversation: Conversation) -> GivenText:
        """The conversation as tokens, cut to `max_tokens`. Raises ConfigError, naming it."""
        return shortened(self.policy.read_conversation(conversation), self.config.max_tokens, conversation.id)

    def batches(self, fed: Any, step: int) -> list[TextBatch]:
        """This rank's conversations of the step; what is fed is not looked at."""
        return self._cut(*self.given.of_step(step))

    def batches_of(self, rows: Sequence[Conversation]) -> list[TextBatch]:
        """Micro-batches of other conversations, such as those that are held out."""
        return self._cut(self.given.readable(rows), 0)

    def _cut(self, texts: list[GivenText], skipped: int) -> list[TextBatch]:
        cuts = by_length(texts, lambda text: text.length, self.config.micro_batch_size)
        return [TextBatch(cut, 0 if number else skipped) for number, cut in enumerate(cuts)]

    def counts(self, batch: TextBatch) -> dict[str, float]:
        return {"weight": self._weights(batch).count.item()}

    def num_parts(self, batch: TextBatch) -> int:
        return 1

    def terms(self, batch: TextBatch, part: int) -> tuple[list[Term], Stats]:
        logp_BS = self.policy.logp([text.reading for text in batch.texts], [text.tokens for text in batch.texts])
        weight_BS = sent(self._weights(batch).weight_BS, logp_BS.device)
        counts_BS = weight_BS != 0
        # Selected before it is weighed: what lies behind a row's end may be NaN, and 0 * NaN is NaN.
        loss = -(weight_BS * torch.where(counts_BS, logp_BS, 0.0)).sum()
        tokens = counts_BS.sum().float()
        totals = {"sft/tokens": tokens, "sft/skipped": torch.full_like(tokens, batch.skipped)}
        return [Term("loss/sft", loss, "weight")], Stats(tokens, totals=totals)

    def _weights(self, batch: TextBatch) -> Weights:
        mask_BS = learnt_mask(batch.texts)
        return weigh(mask_BS, self.config.reduction, weight_B=torch.full((len(mask_BS),), batch.weight))
