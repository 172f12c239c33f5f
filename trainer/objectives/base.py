"""What every objective is: a stream of small sums of losses, and the counts that they are divided by.

A loss is sum(weight * term) / count. The counts follow from masks and weights, so they are known before any forward pass, and
are added up over all micro-batches and all ranks first. Then neither the cut into micro-batches nor the number of ranks
changes a step. Axes: B samples, S columns (denoising steps or tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable
from weakref import ref

import torch
from torch import Tensor

from machine.transfers import sent
from trainer.losses import Stats
from trainer.policies.base import Policy, missing, regroup, select
from trainer.types import Rollout, Trace


@dataclass(frozen=True)
class PlanNeeds:
    """What an objective asks of the rollouts it is trained on (`trainer.policies.base.SamplingPlan`).

    Attributes:
        keep_means: the means of the trained steps are kept.
        keep_final: the clean latents are kept.
        deterministic: no step is stochastic and none is replayed; the ODE solver alone makes the sample.
    """

    keep_means: bool = False
    keep_final: bool = False
    deterministic: bool = False


@dataclass(frozen=True)
class Entry:
    """An objective and what it needs of its surroundings.

    Attributes:
        build: its class, whose `requires` the policy must have; it is given the policy, its section of the configuration,
            `micro_batch_size` and `seed`.
        needs: what it asks of the sampling plan.
        reference: whether the policy must keep its starting weights, even without a KL.
    """

    build: type[Any]
    needs: PlanNeeds
    reference: bool = False


@dataclass(frozen=True)
class Scored:
    """What a program of reinforcement learning feeds an objective: this rank's samples with their advantages.

    Attributes:
        rollouts: micro-batches as they were sampled.
        adv_B: float32, in the order of the samples.
        weight_B: float32; 0 for samples that must not train.
    """

    rollouts: Sequence[Rollout]
    adv_B: Tensor
    weight_B: Tensor


@dataclass(frozen=True)
class Term:
    """One sum of a loss. The update adds share * coef * sum / count[over] to what is minimised.

    Attributes:
        name: the metric that shows sum / count[over].
        sum: 0-d float32, of this part of the micro-batch; differentiable where `coef` is not 0.
        over: which count of the objective it is divided by.
        coef: weight beside the other terms of the objective; a term of weight 0 is shown and not trained on.
        share: weight of the whole objective where it is one of several.
        scales: whether c times the advantages makes it c times as large, for any c >= 0; read of objectives that say `scales`.
    """

    name: str
    sum: Tensor
    over: str
    coef: float = 1.0
    share: float = 1.0
    scales: bool = True


class Batch(Protocol):
    """A micro-batch of an update, as the update sees it."""

    @property
    def kind(self) -> str:
        """What it is made of. Ranks may have different numbers of parts of a kind, but all have some or none has any."""
        ...

    @property
    def update(self) -> int | None:
        """The only one of the step's updates (from 0) that it is for; None is all of them."""
        ...

    def to(self, device: torch.device) -> Self: ...

    def weightless(self) -> Self:
        """The same with every weight 0: computed like the others, and of no effect on gradient and metrics."""
        ...


@dataclass(frozen=True)
class RolloutBatch:
    """A micro-batch of samples with advantages.

    Attributes:
        rollout: B samples.
        adv_B: their advantages.
        weight_N: loss weights of its terms: of each sample, or of each pair.
        step: finished training steps; what is random in an objective depends on it.
        left_out: what samples that are not computed, as their gradient is 0, add to what the terms are divided by.
        idle: how many samples have no gradient, on the first micro-batch of a rank.
        stands_for: how many samples this one speaks for, these included; None is its own.
        old: by part, what the policy said before the first update on these samples, without gradient.
    """

    rollout: Rollout
    adv_B: Tensor
    weight_N: Tensor
    step: int
    left_out: float = 0.0
    idle: int = 0
    stands_for: int | None = None
    old: dict[int, Tensor] = field(default_factory=dict)
    kind: ClassVar[str] = "rollouts"
    update: ClassVar[None] = None

    def to(self, device: torch.device) -> Self:
        # A number a sample is taken along by the call itself: the device need not have finished what was queued before.
        adv_B, weight_N = (sent(each, device) for each in (self.adv_B, self.weight_N))
        return replace(self, adv_B=adv_B, weight_N=weight_N)

    def weightless(self) -> Self:
        return replace(self, weight_N=torch.zeros_like(self.weight_N))

    def num_samples(self) -> dict[str, float]:
        """What an objective counts besides its terms, so that the share of samples without a gradient can be shown."""
        return {"samples": len(self.rollout) if self.stands_for is None else self.stands_for, "idle": self.idle}


class Objective(Protocol):
    """Turns what a program feeds it into losses.

    Attributes:
        requires: the capability (`trainer.policies.base`) that its policy must have.
        leads: names of counts; an update is made when one of them is above 0 over all ranks.

    One that has `scales = True` promises that c times the advantages is c times all terms but those that say otherwise, for any c >= 0: its
    update may begin while scores are awaited (docs/decisions/0137).
    """

    @property
    def requires(self) -> type: ...

    @property
    def leads(self) -> Sequence[str]: ...

    def batches(self, fed: Any, step: int) -> Sequence[Batch]:
        """The micro-batches of this rank for all updates of a step, on the CPU.

        Args:
            fed: what the objective is made for, such as `Scored`.
            step: finished training steps.

        Raises:
            StopTrainingError: this rank has nothing to train on, and says why; all ranks stop then.
        """
        ...

    def counts(self, batch: Any) -> Mapping[str, float]:
        """What the terms of this micro-batch are divided by, from masks and weights alone."""
        ...

    def num_parts(self, batch: Any) -> int:
        """Into how many forward and backward passes the micro-batch is cut; at least 1."""
        ...

    def terms(self, batch: Any, part: int) -> tuple[Sequence[Term], Stats]:
        """The sums of one part of the micro-batch, at least one, and what is shown of it.

        The first call keeps in the batch what the objective needs of the policy that drew the samples, so it is made under
        that policy's weights.
        """
        ...


@runtime_checkable
class LooksFirst(Protocol):
    """An objective whose terms depend on more than their own micro-batch, such as on an order among all samples of a step."""

    def look(self, batches: Sequence[Any], gather: Callable[[Any], list[Any]]) -> None:
        """See this rank's micro-batches of an update before `terms` is asked about any of them; without gradient. All ranks call it
        together, with equally many micro-batches.

        Args:
            gather: gives every rank's value (anything JSON holds), by rank.
        """
        ...


class Once:
    """Lets an objective take each sample once.

    A second step on the same samples would take the first replay for the sampling policy again, so that ratios start at 1
    and no clip holds: use `optim.updates_per_rollout`.
    """

    def __init__(self) -> None:
        self._taken: list[ref[Trace]] = []

    def take(self, rollouts: Sequence[Rollout]) -> None:
        """Raises ValueError when one of them was taken before."""
        alive = [trace for reference in self._taken if (trace := reference()) is not None]
        for rollout in rollouts:
            if any(rollout.trace is trace for trace in alive):
                raise ValueError(
                    f"the rollout of sample {rollout.samples[0].id} was trained on before; a second step on it would start "
                    "its ratios at 1 again. Sample anew, or set optim.updates_per_rollout"
                )
        self._taken = [ref(trace) for trace in (*alive, *(rollout.trace for rollout in rollouts))]


def micro_batches(fed: Scored, step: int, size: int | None) -> list[RolloutBatch]:
    """The samples in their order, `size` at a time; None keeps the sampled micro-batches. A term is a sample."""
    batches, start = [], 0
    for rollout in regroup(fed.rollouts, size):
        rows = slice(start, start + len(rollout))
        batches.append(RolloutBatch(rollout, fed.adv_B[rows], fed.weight_B[rows], step))
        start += len(rollout)
    return batches


def with_gradient(
    fed: Scored,
    acts_B: Tensor,
    step: int,
    size: int | None,
    count: Callable[[RolloutBatch], float],
    *,
    policy: Policy,
) -> list[RolloutBatch]:
    """The micro-batches of the samples that have a gradient; of the first sample where none has, as an update needs something
    to compute.

    The others still count in what the terms are divided by, so the gradient is that of all samples. Those that are left are
    put together anew, `size` at a time or as many as were sampled together: fewer passes rather than smaller ones. Of a policy
    whose samples depend on their micro-batch (`reads_neighbours`) whole micro-batches are left out or none of it.

    Args:
        acts_B: bool, which samples have a gradient.
        count: what a micro-batch adds to what its terms are divided by.
    """
    acts_B = acts_B.cpu()
    if getattr(policy, "reads_neighbours", False):
        sizes = [len(rollout) for rollout in fed.rollouts]
        acts_B = torch.cat([part.any().expand(len(part)) for part in torch.split(acts_B, sizes)])
    if acts_B.all() or not len(acts_B):
        return micro_batches(fed, step, size)
    idle = int((~acts_B).sum())
    if idle == len(acts_B):  # all of the first micro-batch, of a policy that reads neighbours
        first_ones = len(fed.rollouts[0]) if getattr(policy, "reads_neighbours", False) else 1
        acts_B = torch.arange(len(acts_B)) < first_ones
    kept, left_out, first = list[Rollout](), 0.0, 0
    for rollout in fed.rollouts:
        rows = slice(first, first + len(rollout))
        idle_B = torch.where(acts_B[rows], 0.0, fed.weight_B[rows].cpu())
        left_out += count(RolloutBatch(rollout, fed.adv_B[rows], idle_B, step))
        if acts_B[rows].any():
            kept.append(select(rollout, acts_B[rows].nonzero()[:, 0].tolist()))
        first += len(rollout)
    scored = Scored(kept, fed.adv_B[acts_B.to(fed.adv_B.device)], fed.weight_B[acts_B.to(fed.weight_B.device)])
    found = micro_batches(scored, step, size or max(len(rollout) for rollout in fed.rollouts))
    return standing_for(found, len(acts_B), idle, left_out)


def standing_for(batches: Sequence[RolloutBatch], samples: int, idle: int, left_out: float = 0.0) -> list[RolloutBatch]:
    """The micro-batches; the first speaks for the `idle` of all `samples`, too, that are in none."""
    others = sum(len(batch.rollout) for batch in batches[1:])
    return [replace(batches[0], left_out=left_out, idle=idle, stands_for=samples - others), *batches[1:]]


def total(terms: Sequence[Term], counts: Mapping[str, float]) -> Tensor:
    """What one part adds to the loss: 0-d float32, differentiable.

    Terms over the same count are added up before they are divided: one rounding, and the curves of a KL beside a policy
    loss stay what they were when the two were one sum.
    """
    sums: dict[tuple[str, float], Tensor] = {}
    for term in terms:
        if term.coef:
            weighted = term.sum if term.coef == 1 else term.coef * term.sum
            key = (term.over, term.share)
            sums[key] = sums[key] + weighted if key in sums else weighted
    loss = torch.zeros((), device=terms[0].sum.device)
    for (over, share), value in sums.items():
        # A count of 0 has only terms of weight 0, whose sum is 0.
        loss = loss + share * value / max(counts[over], 1.0)
    return loss


def check_capability(policy: Policy, objective: str, capability: type) -> None:
    """Raises ValueError naming both where the policy lacks what the objective trains through.

    Args:
        objective: how the configuration names it.
    """
    lacking = missing(policy, capability)
    if lacking:
        raise ValueError(
            f"{objective} trains through {capability.__name__} (trainer/policies/base.py), but the policy "
            f"{type(policy).__name__} has no {', '.join(lacking)}; choose an objective that fits the policy"
        )
