"""Reinforcement learning: draw prompts, sample, score, advantages, update.

Axes: P prompts, G group, B = P*G samples of this rank, S trained steps, R rewards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainer.advantages import ESTIMATORS, RunningSpread, without_flat_groups
from trainer.checkpoint.saver import Kept, Stateful, TensorOwner
from trainer.config import Config, ConfigError, Task, TaskSamplingConfig
from trainer.config.advantage import GroupedSection
from trainer.config.objective_checks import with_longest
from trainer.data.captions import CaptionData, caption_prompts
from trainer.data.datasets import Dataset, load_datasets, sampled, without
from trainer.data.joined import Joined
from trainer.data.overlap import settle
from trainer.data.sampler import PromptSampler
from trainer.evaluation.sets import load_sets
from trainer.objectives import Objective, Scored, build_objective, needs_reference, plan_needs, with_supervised
from trainer.objectives.tasks import Tasks
from trainer.policies.base import Policy, Samples
from trainer.policies.lora import allow_second_backward
from trainer.policies.registry import build_policy, entry_of
from trainer.processes.distributed import World
from trainer.programs.base import Kind, Material
from trainer.programs.early import APART, EarlyUpdate, goes_apart, why_waits
from trainer.programs.resampling import exchanged, flat_groups, joined
from trainer.programs.rollout import Collected, Drawn, marked, seeds_B
from trainer.programs.session import Row, Session
from trainer.programs.sight import prove_on_prompts
from trainer.programs.step_row import loss_shares, step_metrics
from trainer.records.step_metrics import advantage_metrics
from trainer.types import Prompt, Scores
from trainer.update.old import old_policy
from trainer.update.updater import Updater

LOOK_S = 0.1  # between two looks at whether all ranks have their scores, or are asked to stop
SOON_S = 0.02  # the same where the scores of the next groups give something to compute
OLD_LOGP = {
    "replay": "old_logp: replay: first ratios are to log-probabilities computed as in training, and exactly 1",
    "sampled": "old_logp: sampled: first ratios are to log-probabilities of the drawing, and near 1: see ratio/replay_error",
}
LATE_S = 5.0  # after a signal, a step whose rewards come within it is finished


@dataclass(frozen=True)
class RlMaterial(Material):
    """Texts of a run; `datasets` are the training prompts by data set."""

    datasets: Sequence[Dataset]

    @property
    def notes(self) -> Sequence[str]:
        return [note for dataset in self.datasets for note in dataset.notes]


def read_material(config: Config) -> RlMaterial:
    """Read the prompts of a run. Raises DataError, ConfigError."""
    datasets = load_datasets(config)
    rows = Joined(dataset.prompts for dataset in datasets)
    sets = load_sets(config, sampled(datasets), datasets)
    heldout = [prompt for each in sets for prompt in each.prompts]
    if config.sft is not None:
        rows = Joined([rows, caption_prompts(config.sft)])
    overlap = settle(config, rows, heldout)
    kept = without(datasets, config.data, overlap.ids())
    return RlMaterial(sampled(kept), sets, overlap, len(rows), kept)


def deal(config: Config, material: RlMaterial, world: World) -> PromptSampler:
    """The sampler of this rank. Raises ConfigError, DataError: a step's prompts cannot be dealt to the ranks."""
    return PromptSampler(
        material.datasets,
        prompts_per_step=config.sampling.prompts_per_step,
        seed=config.seed,
        rank=world.rank,
        world=world.size,
    )


def build_updater(session: Session, left_out: Set[str]) -> Updater:
    """The updater of the run's objective.

    Args:
        left_out: texts that the supervised loss must not draw.

    Raises:
        ConfigError: its images cannot be used.
        ValueError: the policy lacks what the objective trains through.
    """
    config, world, policy = session.config, session.world, session.policy
    updates = config.optim.updates_per_rollout
    members = {task.name: (task.loss_weight, _objective(task, config, policy)) for task in config.tasks}
    objective: Objective = Tasks(members) if all(members) else members[""][1]
    if config.sft is not None:
        captions = CaptionData(config.sft, config.seed)
        share = (world.rank, world.size)
        objective = with_supervised(objective, policy, config.sft, captions, config.seed, share=share, updates=updates)
        captions.leave_out(left_out)
    found = (old_policy(policy.trainable, task.objective, task.name) for task in config.tasks)
    old = next((each for each in found if each is not None), None)  # objectives of images alone have one
    return Updater(objective, session.engine, config.optim, world, config.max_steps, old=old)


class RlProgram:
    """A run whose step samples, asks for rewards, and moves the weights along the advantages.

    Attributes:
        position: the sampler's after the last finished step; the sampler itself may be a step ahead.
        drawn: the next step's batch where it is sampled ahead. It is not saved, and a resumed run samples it again.
    """

    def __init__(self, session: Session, material: RlMaterial, sampler: PromptSampler) -> None:
        config, policy = session.config, session.policy
        if not isinstance(policy, Samples):
            raise ConfigError(f"policy.type = {config.policy.type} draws no samples, so rewards cannot train it")
        self.session, self.sampler, self.policy = session, sampler, policy
        self.tasks, self.family = config.tasks, entry_of(config.policy).family
        self.updater = build_updater(session, material.overlap.texts())
        self.waits, self.goes_apart = why_waits(config), goes_apart(config)
        if self.goes_apart:
            allow_second_backward()
        self.spreads = {task.name: RunningSpread(len(config.rewards.columns)) for task in self.tasks}
        self.position = sampler.state_dict()
        self.drawn: Sequence[Drawn] = ()

    @property
    def tensors(self) -> Sequence[TensorOwner]:
        return [] if self.updater.old is None else [self.updater.old]

    def states(self) -> Mapping[str, Stateful]:
        columns = list(self.session.config.rewards.columns)
        spreads = {
            f"spread/{name}" if name else "spread": Kept(
                partial(_spread_state, self, name), partial(_load_spread, self, name)
            )
            for name in self.spreads
        }
        return {
            "columns": Kept(lambda: columns, lambda before: _check_same_columns(before, columns)),
            **spreads,
            "sampler": Kept(lambda: self.position, self._load_position),
        }

    def begin(self) -> None:
        """Forget the spread of rewards that come from another scorer now: it was of other numbers. A policy that reads images
        proves that it sees them."""
        for name in self.session.scorers.changed:
            for spread in self.spreads.values():
                spread.forget(list(self.session.config.rewards.columns).index(name))
        if isinstance(self.session.config.sampling, TaskSamplingConfig) and self.session.world.is_main:
            self.session.recorder.note(OLD_LOGP[_old_logp(self.session.config)])
        if self.waits is not None:
            self.session.recorder.note(f"An update waits for its step's last score: {self.waits}")
        if self.goes_apart:
            self.session.recorder.note(APART)
        prove_on_prompts(self.session, self.sampler, plan_needs(self.session.config.objective.type))

    def end(self) -> None:
        """Nothing is left behind besides checkpoints and records."""

    def step(self) -> Row | None:
        """One step, from prompts to changed weights. None: a signal came, and the rewards are late."""
        session, config = self.session, self.session.config
        started, cpu = time.perf_counter(), time.process_time()
        drawn = self.drawn or self.roll_out(session.step)
        self.drawn = ()
        if config.sampling.pipeline == "one_step_off" and session.step + 1 < config.max_steps:
            self.drawn = self.roll_out(session.step + 1)  # by the weights before this update, while this step is scored
        sampled = time.perf_counter()

        early = None
        if self.waits is None:
            early = EarlyUpdate(
                self.updater, drawn[0], session.world, session.step, self.spreads[""], apart=self.goes_apart
            )
        collected = self.collect(drawn, early)
        if collected is None:
            return None
        self.record(collected)
        scored, hidden_s = time.perf_counter(), early.hidden_s if early else 0.0
        seen = collected[0].seen
        seen.waited_s = max(seen.waited_s - hidden_s, 0.0)  # the work goes on where scores come meanwhile

        fed, spreads, row = self.advantages(collected)
        if early is not None:
            row |= early.finish(collected[0].scores, fed[""], spreads[""])
        else:
            row |= self.updater.step(fed if all(fed) else fed[""], session.step)
        row |= loss_shares(self.tasks, row)
        session.ema.update()
        for each in collected:
            row |= each.drawn.version_lag(session.step)
        session.step, self.position, self.spreads = session.step + 1, collected[-1].drawn.position, spreads
        row |= session.weights_changed(row)
        self.drawn = [each.stale() for each in self.drawn]
        updated = time.perf_counter()

        update_s = updated - scored + hidden_s
        row |= step_metrics(session, collected, scored_s=update_s, step_s=updated - started)
        row |= {
            "step": session.step,
            "time/rollout": sampled - started,
            "time/reward_wait": scored - sampled - hidden_s,
            "time/update": update_s,
            "time/update_hidden": hidden_s,
            "time/total": updated - started,
            "time/cpu": time.process_time() - cpu,
        }
        session.totals.add(row)
        return dict(row)

    def collect(self, drawn: Sequence[Drawn], early: EarlyUpdate | None) -> list[Collected] | None:
        """Each task's rollouts with their scores, flat groups exchanged; None as in `await_scores`."""
        found = []
        for each in drawn:
            scores = self.await_scores(each, early)
            resampled = scores and self.resample(each, scores)
            if not resampled:
                return None
            found.append(resampled)
        return found

    def record(self, collected: Sequence[Collected]) -> None:
        """Keep the step for the flight recorder, and stop where a reward says so on any rank."""
        session = self.session
        for each in collected:
            plan, task = vars(each.drawn.plan), each.drawn.task.name
            session.flight.add(session.step + 1, each.drawn.samples, each.drawn.seeds_B, plan, each.scores, task)
        session.stop_together(next(filter(None, (each.scores.stop_reason for each in collected)), None))

    def resample(self, drawn: Drawn, scores: Scores) -> Collected | None:
        """Exchange groups that teach nothing for groups of other prompts, at most `sampling.max_resamples` times; None as in
        `await_scores`."""
        session, config, seen = self.session, self.session.config, scores
        sampling, min_valid = config.sampling, drawn.task.advantage.min_valid
        for again in range(1, sampling.max_resamples + 1):
            if not session.world.any(bool(flat_groups(scores, drawn.group_B, min_valid=min_valid))):
                break
            (other,) = self.roll_out(session.step, again)  # tasks that share their prompts have no max_resamples
            others = self.await_scores(other)
            if others is None:
                return None
            drawn, scores = exchanged(
                (drawn, scores),
                (other, others),
                group_size=drawn.task.group_size,
                micro_batch_size=drawn.task.micro_batch_size,
                min_valid=min_valid,
            )
            seen = joined(seen, others)
        return Collected(drawn, scores, seen)

    def roll_out(self, step: int, again: int = 0) -> list[Drawn]:
        """Draw the prompts of the step after `step` finished ones and sample them for each task; each micro-batch is scored
        while the next one is sampled.

        Args:
            again: how often the step was sampled before.
        """
        prompts_P = self.sampler.draw()
        return [self.draw(task, prompts_P, step, again) for task in self.tasks]

    def draw(self, task: Task, prompts_P: Sequence[Prompt], step: int, again: int) -> Drawn:
        """Sample one task."""
        session, config = self.session, self.session.config
        batch = session.client.batch(group_size=task.group_size, step=step + 1)
        seeds, needs = seeds_B(config, task, session.world, step, again), plan_needs(task.objective.type)
        plan = self.family.training_plan(config, step, needs, task.name)
        session.gauges.flops.take()  # an evaluation's
        started = time.perf_counter()
        rollouts = []
        with self.updater.sampling_policy(task.name):
            sides_P = [prompt.side(task.name) for prompt in prompts_P]
            for drawn in self.policy.sample(sides_P, task.group_size, seeds, plan):
                rollout = replace(marked(drawn, again), sampled_is_old=_old_logp(config) == "sampled")
                batch.submit(rollout.samples)
                rollouts.append(rollout)
        sampling_s = time.perf_counter() - started
        flops, _ = session.gauges.flops.take()
        return Drawn(task, rollouts, batch, self.sampler.state_dict(), seeds, plan, sampling_s, flops)

    def await_scores(self, drawn: Drawn, early: EarlyUpdate | None = None) -> Scores | None:
        """The scores of a step's rollouts when all ranks have theirs; None when a signal to stop came, and they are late.

        A judge may take as long as its deadline, which is longer than whoever ends the process will wait.

        Args:
            early: an update that goes on meanwhile.
        """
        session = self.session
        collecting = session.executor.submit(drawn.batch.collect)
        asked_at = math.inf
        while True:
            if session.signals.asked:
                asked_at = min(asked_at, time.monotonic())
            told = session.world.gather([collecting.done(), time.monotonic() - asked_at > LATE_S])
            if all(is_done for is_done, _ in told):
                return collecting.result()
            if any(is_late for _, is_late in told):  # all ranks leave together
                return None
            if early is None or not early.advance():
                wait([collecting], LOOK_S if early is None or early.is_at_last else SOON_S)

    def advantages(
        self, collected: Sequence[Collected]
    ) -> tuple[dict[str, Scored], dict[str, RunningSpread], dict[str, float]]:
        """By task: what is trained on, the running spread with this step's scores, and metrics over all ranks.

        Advantages are clamped; those of a pair are then multiplied by its weight.
        """
        session, row = self.session, dict[str, float]()
        fed, spreads = dict[str, Scored](), dict[str, RunningSpread]()
        for each in collected:
            task, seen = each.drawn.task, each.seen
            before = self.spreads[task.name]
            spread = before.after(seen.scores_BR, seen.valid_BR, reduce=session.world.sum)
            floor_R = before.floor(share, spread) if (share := task.advantage.std_floor) else None
            adv_B, weight_B, found = task_advantages(task, each.scores, floor_R, each.drawn.group_B, session.world)
            adv_B = adv_B * self.pair_weight_B(each.drawn)
            session.flight.add_advantages(adv_B, weight_B, row, task.name)
            row |= {task.key(name): value for name, value in found.items()}
            fed[task.name] = Scored(each.drawn.rollouts, adv_B, weight_B)
            spreads[task.name] = spread
        return fed, spreads, row

    def pair_weight_B(self, drawn: Drawn) -> Tensor | float:
        """w of each sample's pair (PairUni, section 3.3); 1 where there are no pairs."""
        sampling = self.session.config.sampling
        if not isinstance(sampling, TaskSamplingConfig):
            return 1.0
        return torch.tensor([sampling.weight_of(sample.prompt.similarity) for sample in drawn.samples])

    def _load_position(self, position: dict[str, Any]) -> None:
        self.position = position
        self.sampler.load_state_dict(position)


def _spread_state(program: RlProgram, task: str) -> dict[str, Any]:
    return {key: value.tolist() for key, value in program.spreads[task].state_dict().items()}


def _load_spread(program: RlProgram, task: str, state: Mapping[str, Any]) -> None:
    program.spreads[task].load_state_dict({key: torch.tensor(v, dtype=torch.float64) for key, v in state.items()})


def task_advantages(
    task: Task, scores: Scores, std_floor_R: Tensor | None, group_B: Tensor, world: World
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Clamped advantages and loss weights of this rank's samples of a task, with their metrics over all ranks."""
    config = task.advantage
    adv_B, weight_B = ESTIMATORS[config.type](
        scores.scores_BR,
        scores.valid_BR,
        group_B,
        scores.weights_BR,
        eps=config.eps,
        min_valid=config.min_valid,
        std_floor_R=std_floor_R,
        reduce=world.sum,
    )
    if isinstance(config, GroupedSection) and config.skip_flat_groups:
        weight_B = without_flat_groups(adv_B, weight_B, group_B)
    clamped_B = adv_B.clamp(-config.adv_clip, config.adv_clip)
    return clamped_B, weight_B, advantage_metrics(scores, group_B, adv_B, weight_B, std_floor_R, config, world)


def _objective(task: Task, config: Config, policy: Policy) -> Objective:
    """One instance a task: each remembers the samples that it has taken."""
    section = with_longest(task.objective, config.sampling)
    return build_objective(policy, section, micro_batch_size=config.optim.micro_batch_size, seed=config.seed)


def _old_logp(config: Config) -> str:
    return config.sampling.old_logp if isinstance(config.sampling, TaskSamplingConfig) else "replay"


def _check_same_columns(before: list[str], now: list[str]) -> None:
    if before != now:  # the running spread is kept in their order
        raise ValueError(f"rewards.columns were {', '.join(before)}, now {', '.join(now)}")


def _policy(config: Config, device: torch.device) -> Policy:
    keeps = any(needs_reference(task.objective) for task in config.tasks)
    policy: Policy = build_policy(config.policy, device, keep_reference=keeps)
    return policy


KIND = Kind(read_material, deal, _policy, RlProgram)
