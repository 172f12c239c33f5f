"""Work on the gradient while scores are awaited: whole groups whose rewards are there, before the batch's last one comes.

Only where it is exact (`why_waits`), and always in the same segments and order, so a run does not depend on what arrived when.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.advantages import SCALED, WITHIN_GROUPS, RunningSpread, without_flat_groups
from trainer.config import Config, TaskSamplingConfig
from trainer.config.advantage import GroupedSection
from trainer.objectives import OBJECTIVES, Scored
from trainer.processes.distributed import World
from trainer.programs.rollout import Drawn
from trainer.types import Rollout, Scores
from trainer.update.segments import SegmentedUpdate, segments
from trainer.update.updater import Updater

_CLOSE = 1e-5  # float32 advantages that are one number times others, beside the largest of them
APART = (
    "optim.early_gradient = always: the KL's gradient is kept apart until the last score has come. All but a step's last groups go backward "
    "twice, up to two fifths more of an update, and a second gradient is in memory"
)


def why_waits(config: Config) -> str | None:
    """Why a run's updates wait for the last score of a step; None where they begin before."""
    section, advantage, optim = config.objective, config.advantage, config.optim
    reasons = {
        "optim.early_gradient is never": optim.early_gradient == "never",
        "the losses of sampling.tasks have a factor each": isinstance(config.sampling, TaskSamplingConfig),
        f"advantage.type = {advantage.type} compares samples of different groups": advantage.type not in WITHIN_GROUPS,
        f"advantage.std_floor with advantage.type = {advantage.type} floors what the whole batch is divided by": bool(
            advantage.type == "grpo_global_std" and advantage.std_floor
        ),
        "the supervised loss of sft stands beside the policy's": config.sft is not None,
        f"the loss of objective.type = {section.type} need not scale with the advantage": not getattr(
            OBJECTIVES[section.type].build, "scales", False
        ),
        "with objective.old_decay the averaged weights look at all samples first": bool(
            getattr(section, "old_decay", 0.0)
        ),
        "sampling.max_resamples exchanges groups when all scores are there": bool(
            getattr(config.sampling, "max_resamples", 0)
        ),
        "rewards.shuffle_control deals scores out over the whole batch": config.rewards.shuffle_control,
        "distributed.deepspeed keeps one gradient, and objective.kl_beta above 0 lacks the factor that advantage.type = "
        f"{advantage.type} takes from the whole batch": (
            _has_two_factors(config) and config.distributed.deepspeed is not None
        ),
        f"objective.kl_beta is above 0, whose part lacks the factor that advantage.type = {advantage.type} takes from the whole batch; where "
        "rewards are slow, optim.early_gradient = always computes the two apart": (
            _has_two_factors(config) and optim.early_gradient == "auto"
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def goes_apart(config: Config) -> bool:
    """Whether updates begin before the last score with two gradients: the policy's, which waits for a factor, and the KL's."""
    return config.program == "rl" and _has_two_factors(config) and why_waits(config) is None


def _has_two_factors(config: Config) -> bool:
    return config.advantage.type in SCALED and bool(getattr(config.objective, "kl_beta", 0.0))


class EarlyUpdate:
    """The update of one step, under way while its scores are awaited.

    Attributes:
        hidden_s: seconds of it that were spent while scores were awaited.
    """

    def __init__(
        self, updater: Updater, drawn: Drawn, world: World, step: int, spread: RunningSpread, *, apart: bool = False
    ) -> None:
        """All ranks make it together.

        Args:
            step: finished training steps.
            spread: of each reward in the steps before, which the floor of a group's divisor is a share of.
            apart: as `goes_apart`.
        """
        self.updater, self.drawn, self.world, self.step, self.hidden_s = updater, drawn, world, step, 0.0
        self.spread, self.apart = spread, apart
        cuts = segments(drawn.rollouts, getattr(updater.objective, "micro_batch_size", None))
        if len(set(world.gather(len(cuts)))) > 1:  # the last ranks of an uneven split
            cuts = [slice(0, len(drawn.rollouts))]
        self.cuts, self.added = cuts, 0
        self.used: list[tuple[Tensor, Tensor]] = []
        self.update: SegmentedUpdate | None = None

    @property
    def is_at_last(self) -> bool:
        """Whether only the last segment is left, which waits for what the whole batch says."""
        return self.added + 1 >= len(self.cuts)

    def advance(self) -> bool:
        """Add the next segment's gradient, unless a score of it is missing on some rank, or it is the last one. All ranks call it
        together. Returns whether one was added."""
        if self.is_at_last:
            return False
        scores = self.drawn.batch.peek(self._rows(self.cuts[self.added]))
        if self.world.any(scores is None or not self._has_floor(scores)):
            return False
        assert scores is not None
        started = time.perf_counter()
        rollouts = self.drawn.rollouts[self.cuts[self.added]]
        group_B = torch.cat([each.group_B for each in rollouts])
        fed = Scored(rollouts, *self.within_groups(scores, group_B, self.spread))
        self._add(fed, last=False)
        self.hidden_s += time.perf_counter() - started
        return True

    def within_groups(self, scores: Scores, group_B: Tensor, after: RunningSpread) -> tuple[Tensor, Tensor]:
        """Advantages without the batch's factor, and weights; where that factor is always 1, clamped.

        Args:
            after: the spread after the step.
        """
        config = self.drawn.task.advantage
        adv_B, weight_B = WITHIN_GROUPS[config.type](
            scores.scores_BR,
            scores.valid_BR,
            group_B,
            scores.weights_BR,
            eps=config.eps,
            min_valid=config.min_valid,
            std_floor_R=self.spread.floor(config.std_floor, after) if config.std_floor else None,
        )
        if isinstance(config, GroupedSection) and config.skip_flat_groups:
            weight_B = without_flat_groups(adv_B, weight_B, group_B)
        return adv_B if config.type in SCALED else adv_B.clamp(-config.adv_clip, config.adv_clip), weight_B

    def _has_floor(self, scores: Scores) -> bool:
        """Whether the floor is known of every reward that is asked for: one without a spread so far has that of this step."""
        asked_R = (scores.weights_BR != 0).any(dim=0).cpu()
        return not self.drawn.task.advantage.std_floor or bool((self.spread.known() | ~asked_R).all())

    def finish(self, scores: Scores, fed: Scored, after: RunningSpread) -> dict[str, float]:
        """Add what is left and take the optimizer steps. Returns what `Updater.step` does.

        Where a score that was used has changed since (a reward became another one, a service came back), everything is added up
        anew.

        Args:
            scores: all of them.
            fed: the rollouts with their advantages, clamped, and weights.
            after: the spread after the step.
        """
        clip = self.drawn.task.advantage.adv_clip
        adv_B, weight_B = self.within_groups(scores, self.drawn.group_B, after)
        scale = factor(adv_B, fed.adv_B, clip, self.world)
        is_plain = scale is None or not torch.equal(weight_B, fed.weight_B)
        # With the factor, or, where that is none, what the estimator said, whatever it is made of.
        cases = [(adv_B, weight_B, scale or 0.0), (fed.adv_B, fed.weight_B, 1.0)]
        told = self.world.gather([is_plain, *(self._look(*case, clip) for case in cases)])
        chosen = int(any(each[0] for each in told))
        adv_B, weight_B, scale = cases[chosen]
        is_other, is_clamped = (any(each[1 + chosen][n] for each in told) for n in range(2))
        if is_other:
            self.update, self.added = None, 0
            self.drawn = replace(self.drawn, rollouts=_as_drawn(self.drawn.rollouts))
        while self.added < len(self.cuts):
            cut = self.cuts[self.added]
            rows = self._rows(cut)
            if self.apart and self.is_at_last:
                self._begun().join(scale)
            last = self.is_at_last and not is_clamped
            self._add(Scored(self.drawn.rollouts[cut], adv_B[rows], weight_B[rows]), last=last)
        assert self.update is not None, "there is at least one segment"
        if is_clamped:
            self.update.clamp(scale, clip)
        return self.update.finish(scale, clip)

    def _look(self, adv_B: Tensor, weight_B: Tensor, scale: float, clip: float) -> tuple[bool, bool]:
        """Whether other numbers than these were used so far, and whether one of these is clamped."""
        used = [torch.cat(parts) for parts in zip(*self.used, strict=True)]
        now = (adv_B, weight_B)
        is_other = any(not torch.equal(before, each[: len(before)]) for before, each in zip(used, now, strict=False))
        return is_other, bool((scale * adv_B.abs() > clip).any())

    def _begun(self) -> SegmentedUpdate:
        if self.update is None:
            self.update, self.used = SegmentedUpdate(self.updater, self.step, apart=self.apart), []
        return self.update

    def _add(self, fed: Scored, *, last: bool) -> None:
        self._begun().add(fed, last=last)
        self.used.append((fed.adv_B, fed.weight_B))
        self.added += 1

    def _rows(self, cut: slice) -> slice:
        """Which samples are in these rollouts."""
        first = sum(len(rollout) for rollout in self.drawn.rollouts[: cut.start])
        return slice(first, first + sum(len(rollout) for rollout in self.drawn.rollouts[cut]))


def factor(within_B: Tensor, adv_B: Tensor, clip: float, world: World) -> float | None:
    """c of adv = clamp(c * within) on all ranks; None where there is no such number, 1 where all of `within` is 0."""
    free_B = torch.where(adv_B.abs() < clip, within_B.abs(), 0.0)
    place = int(free_B.argmax()) if len(free_B) else 0
    size = float(free_B[place]) if len(free_B) else 0.0
    told = world.gather([size, float(adv_B[place]) / float(within_B[place]) if size else 1.0])
    scale = float(max(told)[1])
    off_B = ((scale * within_B).clamp(-clip, clip) - adv_B).abs()
    return (
        None
        if scale < 0 or (len(off_B) and float(off_B.max()) > _CLOSE * max(float(adv_B.abs().max()), 1.0))
        else scale
    )


def _as_drawn(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The same samples, which no objective has taken: no optimizer step was made with them."""
    return [replace(rollout, trace=copy.copy(rollout.trace)) for rollout in rollouts]
