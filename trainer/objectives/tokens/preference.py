"""DPO on pairs of given answers. Axes: N pairs, B = 2N rows, the chosen answers first; S tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from machine.transfers import sent
from trainer.config.given_texts import AnswersConfig
from trainer.config.preference_objective import DpoConfig
from trainer.losses import OF_STEP, PairRatios, Stats, chosen_nll, others_of, pair_ratios, pair_terms
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
        others: (2, N), what the losses of these pairs take from the other pairs of the step; none before the objective has looked
            at them, and for kinds that take nothing.
    """

    pairs: Sequence[PairTexts]
    skipped: int = 0
    weight: float = 1.0
    others: list[Tensor] = field(default_factory=list)
    kind: ClassVar[str] = "pairs"
    update: ClassVar[None] = None

    @property
    def texts_B(self) -> list[GivenText]:
        """The chosen answers, then the rejected ones in the same order."""
        return [pair.chosen for pair in self.pairs] + [pair.rejected for pair in self.pairs]

    def to(self, device: torch.device) -> Self:
        return self  # the policy moves what it reads

    def weightless(self) -> Self:
        return replace(self, weight=0.0, skipped=0, others=[])


Reference = Callable[[PairBatch], Tensor]  # logp_BS of the reference, from a table


class TokenDpo:
    """DPO (arXiv 2305.18290) and its relatives (`trainer.losses.pair_terms`) on given answers.

    Kinds that compare a pair with the other pairs of its step cost one forward pass more, without gradient (`look`).

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
        self._rank = share[0]
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
        tokens = sum(sum(pair.chosen.learnt) for pair in batch.pairs) if self.config.kind == "sft" else 0
        return {"pairs": batch.weight * len(batch.pairs), "tokens": batch.weight * tokens}

    def num_parts(self, batch: PairBatch) -> int:
        return 1

    @torch.no_grad()
    def look(self, batches: Sequence[PairBatch], gather: Callable[[Any], list[Any]]) -> None:
        """Tell each pair what its loss takes from the other pairs of the step, on all ranks (`trainer.losses.others_of`)."""
        kind = self.config.kind
        if kind not in OF_STEP:
            return
        own: list[list[float]] = []
        for batch in batches:
            pairs = self._ratios(batch, *self._both(batch))
            if batch.weight:
                own += torch.stack([pairs.chosen_N, pairs.rejected_N, pairs.ref_margin_N], dim=1).tolist()
        told = gather(own)
        columns_3M = torch.tensor([row for rows in told for row in rows]).reshape(-1, 3).T
        others_2M = others_of(PairRatios(*columns_3M), kind, self.config.beta)
        first = sum(len(rows) for rows in told[: self._rank])
        for batch in batches:
            if batch.weight:
                batch.others[:] = [others_2M[:, first : first + len(batch.pairs)]]
                first += len(batch.pairs)

    def terms(self, batch: PairBatch, part: int) -> tuple[list[Term], Stats]:
        """Raises ValueError where the kind compares the pairs of a step and `look` has not seen this batch."""
        config, (logp_BS, ref_BS) = self.config, self._both(batch)
        counts_BS = self._counts(batch, logp_BS.device)
        pairs = self._ratios(batch, logp_BS, ref_BS)
        if config.kind == "sft":
            term = Term("loss/policy", chosen_nll(logp_BS, counts_BS), "tokens")
        else:
            term = Term("loss/policy", batch.weight * self._losses(batch, pairs).sum(), "pairs")
        counts_N = torch.full_like(pairs.chosen_N, batch.weight) != 0
        kl_BS = k3(log_ratios(logp_BS.detach(), ref_BS, counts_BS))
        chosen_kl_N, rejected_kl_N = row_mean(kl_BS, counts_BS)[:, 0].chunk(2)
        skipped = torch.full((), float(batch.skipped), device=logp_BS.device)
        sums = {
            "dpo/margin": total(pairs.margin_N, counts_N),
            "dpo/reward_margin": total(config.beta * pairs.margin_N, counts_N),
            "dpo/accuracy": total(pairs.margin_N > 0, counts_N),
            "dpo/chosen": total(pairs.chosen_N, counts_N),
            "dpo/rejected": total(pairs.rejected_N, counts_N),
            "dpo/kl": total((chosen_kl_N + rejected_kl_N) / 2, counts_N),
        }
        return [term], Stats(counts_N.sum().float(), sums, totals={"preferences/skipped": skipped})

    def _losses(self, batch: PairBatch, pairs: PairRatios) -> Tensor:
        config = self.config
        others_2N = sent(batch.others[0], pairs.chosen_N.device) if batch.others else None
        if others_2N is None and not batch.weight:
            others_2N = torch.zeros(2, len(batch.pairs), device=pairs.chosen_N.device)
        return pair_terms(
            pairs,
            kind=config.kind,
            beta=config.beta,
            smoothing=config.smoothing,
            divergence=config.divergence,
            others_2N=others_2N,
        )

    def _ratios(self, batch: PairBatch, logp_BS: Tensor, ref_BS: Tensor) -> PairRatios:
        counts_BS = self._counts(batch, logp_BS.device)
        return pair_ratios(logp_BS, ref_BS, counts_BS, self.config.kind, ld_alpha=self.config.ld_alpha)

    def _counts(self, batch: PairBatch, device: torch.device) -> Tensor:
        return sent(learnt_mask(batch.texts_B), device) & (batch.weight != 0)

    def _both(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """logp_BS of the policy and of the reference."""
        logp_BS = self.logp(batch)
        ref_BS = self.logp(batch, reference=True) if self.reference is None else self.reference(batch)
        return logp_BS, sent(ref_BS, logp_BS.device)

    def logp(self, batch: PairBatch, *, reference: bool = False) -> Tensor:
        """logp_BS (2N, S) of the answers' tokens."""
        texts_B = batch.texts_B
        return self.policy.logp(
            [text.reading for text in texts_B], [text.tokens for text in texts_B], reference=reference
        )
