"""DPO on pairs of given answers. Axes: N pairs, B = 2N rows, the chosen answers first; S tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trainer.config.given_texts import AnswersConfig
from trainer.config.preference_objective import DpoConfig
from trainer.losses import Stats, answer_log_ratios, preference_terms
from trainer.losses.ratios import k3, log_ratios, row_mean
from trainer.losses.terms import total
from trainer.objectives.base import Term
from trainer.objectives.tokens.given import GivenRows, Rows, by_length, learnt_mask, shortened
from trainer.policies.base import GivenText, ReadsTokens
from trainer.types import AnswerPair, Conversation, Turn


@dataclass(frozen=True)
class PairTexts:
    """A pair as the policy reads it. `row` is what was read."""

    row: AnswerPair
    chosen: GivenText
    rejected: GivenText

    @property
    def length(self) -> int:
        return max(self.chosen.length, self.rejected.length)


@dataclass(frozen=True)
class PairBatch:
    """A micro-batch of N pairs: one forward pass of 2N rows, padded to the longest.

    Attributes:
        pairs: of like length.
        skipped: rows of the step that could not be read, told with its first micro-batch.
        weight: of every pair.
    """

    pairs: Sequence[PairTexts]
    skipped: int = 0
    weight: float = 1.0
    kind: ClassVar[str] = "pairs"
    update: ClassVar[None] = None

    @property
    def texts_B(self) -> list[GivenText]:
        """The chosen answers, then the rejected ones in the same order."""
        return [pair.chosen for pair in self.pairs] + [pair.rejected for pair in self.pairs]

    def to(self, device: torch.device) -> Self:
        return self  # the policy moves what it reads

    def weightless(self) -> Self:
        return replace(self, weight=0.0, skipped=0)


Reference = Callable[[PairBatch], Tensor]  # logp_BS of the reference, from a table


class TokenDpo:
    """DPO (arXiv 2305.18290) and its relatives (`trainer.losses.preference_terms`) on given answers.

    Args:
        share: (r, n): this is rank r of n.

    Attributes:
        reference: where the reference's log-probabilities are looked up; None asks the policy, which then keeps its
            starting weights.

    Raises:
        ConfigError: the first pair cannot be used, or a step's cannot be shared among the ranks.
    """

    requires: ClassVar[type] = ReadsTokens
    leads: ClassVar[Sequence[str]] = ("pairs",)

    def __init__(
        self,
        policy: ReadsTokens,
        config: DpoConfig,
        given: AnswersConfig,
        rows: Rows[AnswerPair],
        *,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.policy, self.config, self.limits = policy, config, given
        self.reference: Reference | None = None
        self.given = GivenRows(rows, self.read, given.batch_size, share)
        self.given.check_first()

    def read(self, row: AnswerPair) -> PairTexts:
        """The two answers as tokens, cut to `max_tokens`. Raises ConfigError, naming the pair."""
        prompt = row.prompt

        def answered(answer: str, which: str) -> GivenText:
            turns = (Turn("user", prompt.text), Turn("assistant", answer))
            text = self.policy.read_conversation(Conversation(prompt.id, turns, prompt.source_images))
            return shortened(text, self.limits.max_tokens, f"{prompt.id} ({which})")

        return PairTexts(row, answered(row.chosen, "chosen"), answered(row.rejected, "rejected"))

    def batches(self, fed: Any, step: int) -> list[PairBatch]:
        """This rank's pairs of the step; what is fed is not looked at."""
        return self._cut(*self.given.of_step(step))

    def batches_of(self, rows: Sequence[AnswerPair]) -> list[PairBatch]:
        """Micro-batches of other pairs, such as those that are held out."""
        return self._cut(self.given.readable(rows), 0)

    def _cut(self, pairs: list[PairTexts], skipped: int) -> list[PairBatch]:
        cuts = by_length(pairs, lambda pair: pair.length, self.limits.micro_batch_size)
        return [PairBatch(cut, 0 if number else skipped) for number, cut in enumerate(cuts)]

    def counts(self, batch: PairBatch) -> dict[str, float]:
        return {"pairs": batch.weight * len(batch.pairs)}

    def num_parts(self, batch: PairBatch) -> int:
        return 1

    def terms(self, batch: PairBatch, part: int) -> tuple[list[Term], Stats]:
        config, logp_BS = self.config, self.logp(batch)
        ref_BS = self.logp(batch, reference=True) if self.reference is None else self.reference(batch)
        mask_BS = learnt_mask(batch.texts_B).to(logp_BS.device)
        log_ratio_BS = log_ratios(logp_BS, ref_BS.to(logp_BS.device), mask_BS & (batch.weight != 0))
        chosen_N, rejected_N = answer_log_ratios(log_ratio_BS, mask_BS, config.kind).chunk(2)
        margin_N = chosen_N - rejected_N
        loss_N = preference_terms(margin_N, kind=config.kind, beta=config.beta, smoothing=config.smoothing)
        counts_N = torch.full_like(margin_N, batch.weight) != 0
        chosen_kl_N, rejected_kl_N = row_mean(k3(log_ratio_BS.detach()), mask_BS)[:, 0].chunk(2)
        skipped = torch.tensor(float(batch.skipped), device=logp_BS.device)
        sums = {
            "dpo/margin": total(margin_N, counts_N),
            "dpo/reward_margin": total(config.beta * margin_N, counts_N),
            "dpo/accuracy": total(margin_N > 0, counts_N),
            "dpo/chosen": total(chosen_N, counts_N),
            "dpo/rejected": total(rejected_N, counts_N),
            "dpo/kl": total((chosen_kl_N + rejected_kl_N) / 2, counts_N),
        }
        stats = Stats(counts_N.sum().float(), sums, totals={"preferences/skipped": skipped})
        return [Term("loss/policy", batch.weight * loss_N.sum(), "pairs")], stats

    def logp(self, batch: PairBatch, *, reference: bool = False) -> Tensor:
        """logp_BS (2N, S) of the answers' tokens."""
        texts_B = batch.texts_B
        return self.policy.logp(
            [text.reading for text in texts_B], [text.tokens for text in texts_B], reference=reference
        )
