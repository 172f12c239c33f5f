"""An update whose gradient is added up while scores are still awaited, and multiplied by one number at the end.

GDPO's advantages are A_i = c a_i: a_i, the weighted sum of a sample's z-scores, follows from its group alone, and c = 1 /
(std + eps) from the whole batch. A surrogate is a sum of terms that scale with the advantage, divided by what counts, n. So

    grad = (c / n) * sum over segments of grad(sum of the segment's terms with a_i for A_i)

and only the first factor waits for the last score. What does not scale, a KL to the reference, has no such factor: with a c of the
batch it is added up in a second gradient until c is known (docs/decisions/0155). Before the first update ratios are 1 and no clip acts, so what clamping
takes off an advantage is added as a term of its own. Segments are whole groups and whole micro-batches, always the same ones in
the same order: what arrives when changes no bit. Axes: B samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from trainer.engine.base import KeepsApart
from trainer.objectives import Scored, Term, total
from trainer.objectives.base import RolloutBatch
from trainer.types import Rollout
from trainer.update.schedule import learning_rate
from trainer.update.tally import Tally
from trainer.update.updater import Updater, skipped_shares
from trainer.update.work import Item, plan_work


def segments(rollouts: Sequence[Rollout], size: int | None) -> list[slice]:
    """The rollouts cut where a group ends and, with a `size`, where a micro-batch of the update is full."""
    cuts, samples = [0], 0
    for number, rollout in enumerate(rollouts, 1):
        samples += len(rollout)
        is_last = number == len(rollouts)
        ends = is_last or int(rollout.group_B[-1]) != int(rollouts[number].group_B[0])
        if is_last or (ends and samples % (size or 1) == 0):
            cuts.append(number)
    return [slice(first, last) for first, last in pairwise(cuts)]


class SegmentedUpdate:
    """The optimizer steps of one training step, for objectives that scale with the advantage; with a KL beside it, c must be 1 or the
    two be kept `apart`.

    All ranks call `add`, `join`, `clamp` and `finish` together, with equally many segments. Nothing but the gradient changes before
    `finish`.
    """

    def __init__(self, updater: Updater, step: int, *, apart: bool = False) -> None:
        """All ranks make it alike.

        Args:
            step: finished training steps.
            apart: the terms that do not scale go backward by themselves, until `join`. The engine must be one that `KeepsApart`.
        """
        self.updater, self.step_number = updater, step
        self.apart = apart
        self.factor: float | None = None  # c, once the gradient has it
        self.tally = Tally(updater.world)
        self.parts: list[tuple[RolloutBatch, int]] = []
        self.counts: Counter[str] = Counter()
        self.sums: dict[tuple[str, bool], Tensor] = {}  # by name, and whether it scales
        updater.engine.zero_grad()

    def add(self, fed: Scored, *, last: bool) -> None:
        """Add a segment's gradient.

        Args:
            fed: its rollouts, with advantages that lack the batch's factor.
            last: no other gradient comes before `finish`.
        """
        updater = self.updater
        work = plan_work(updater.objective, fed, self.step_number, 1, updater.world)
        self.counts.update(work.counts_U[0])
        acts = bool(((fed.adv_B != 0) & (fed.weight_B != 0)).any())
        for number, item in enumerate(work.items, 1):
            terms, stats = updater.objective.terms(item.batch, item.part)
            self.tally.add_stats(stats)
            if self.apart:
                self._backward_apart(terms, acts=acts)
            else:
                self._backward(terms, last=last and number == len(work.items))
        self.parts += [(cast(RolloutBatch, item.batch), item.part) for item in work.items]

    def join(self, scale: float) -> None:
        """Before the last segment of those that are kept apart: from here on one gradient and one backward pass do.

        Args:
            scale: the factor that the advantages lack.
        """
        engine = self.updater.engine
        assert self.apart and isinstance(engine, KeepsApart), "this update has one gradient, or the engine has"
        engine.join(scale)
        self.apart, self.factor = False, scale

    def clamp(self, scale: float, clip: float) -> None:
        """Take what is above `clip` off the advantages: the terms of those samples once more, with what is too much."""
        over = torch.stack([(scale * batch.adv_B.abs() > clip).any() for batch, _ in self.parts])
        told = self.updater.world.gather(over.tolist())
        places = [place for place, flags in enumerate(zip(*told, strict=True)) if any(flags)]
        for number, place in enumerate(places, 1):
            batch, part = self.parts[place]
            # What is taken off is negative by its weight: a loss may treat advantages of the two signs unlike.
            over_B = batch.adv_B - (scale * batch.adv_B).clamp(-clip, clip) / scale
            weight_B = torch.where(over_B != 0, -batch.weight_N, 0.0)
            terms, _ = self.updater.objective.terms(replace(batch, adv_B=over_B, weight_N=weight_B), part)
            self._backward([term for term in terms if term.scales], last=number == len(places))  # a KL stays whole

    def finish(self, scale: float, clip: float) -> dict[str, float]:
        """Take the optimizer steps; the first with the gradient that was added up. Returns what `Updater.step` does.

        Args:
            scale: the factor that the advantages lacked.
            clip: advantages are clamped to plus and minus this.
        """
        updater, tally = self.updater, self.tally
        lead = max(sum(self.counts[name] for name in updater.objective.leads), 1.0)
        # The sums are of advantages that lack their factor; what does not scale lacks none.
        for (name, scales), value in self.sums.items():
            tally.add(name, value * ((scale if scales else 1.0) / (lead * updater.updates)))
        rest = scale if self.factor is None else 1.0
        grad_norm = updater.apply(0, self.counts, self.step_number, tally, scale=rest / lead)
        clamped: dict[int, RolloutBatch] = {}  # one for all parts of a micro-batch, which keep what they see in it
        for batch, _ in self.parts:
            clamped.setdefault(id(batch), replace(batch, adv_B=(scale * batch.adv_B).clamp(-clip, clip)))
        again = [Item(clamped[id(batch)], part) for batch, part in self.parts]
        for number in range(1, updater.updates):
            grad_norm = updater.update(number, again, self.counts, self.step_number, tally)
        lr = learning_rate(updater.optim, self.step_number, updater.max_steps)
        return {"lr": lr, "grad_norm": grad_norm, **skipped_shares(self.counts), **tally.metrics()}

    def _backward(self, terms: Sequence[Term], *, last: bool) -> None:
        """One backward pass for all of them, with the factor where it is known."""
        self._add_sums(terms)
        if self.factor is not None:
            terms = [replace(term, coef=self.factor * term.coef) if term.scales else term for term in terms]
        self.updater.engine.backward(self._total(terms), last=last)

    def _backward_apart(self, terms: Sequence[Term], *, acts: bool) -> None:
        """A backward pass for what does not scale and, unless all advantages are 0, one for what does."""
        self._add_sums(terms)
        engine = self.updater.engine
        assert isinstance(engine, KeepsApart), "who waits was asked before"
        engine.backward_apart(self._total([term for term in terms if not term.scales]), again=acts)
        if acts:
            engine.backward(self._total([term for term in terms if term.scales]), last=False)

    def _total(self, terms: Sequence[Term]) -> Tensor:
        return total(terms, dict.fromkeys(self.counts, 1.0))

    def _add_sums(self, terms: Sequence[Term]) -> None:
        for term in terms:
            key, number = (term.name, term.scales), term.sum.detach().double()
            self.sums[key] = self.sums[key] + number if key in self.sums else number
