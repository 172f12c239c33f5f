"""The numbers of a step of reinforcement learning: rewards, waiting, samples, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce

from trainer.config import Config, Task
from trainer.evaluation.rollout_statistics import rollout_statistics
from trainer.programs.resampling import joined
from trainer.programs.rollout import Collected
from trainer.programs.session import Session
from trainer.records.step_metrics import reward_metrics, wait_metrics
from trainer.records.text_metrics import image_entropy, text_metrics
from trainer.rewards.asked import trained_by

DRAWS = "generate"  # the task whose samples are images
PLANS = ("length", "length_max", "truncated_share", "entropy")  # what is shown of what is written before an image


def step_metrics(
    session: Session, collected: Sequence[Collected], *, scored_s: float, step_s: float
) -> dict[str, float]:
    """Of all tasks and ranks.

    Args:
        scored_s: seconds since the scores were there; `step_s` of the whole step.
    """
    config, world = session.config, session.world
    drawn = [each.drawn for each in collected]
    seen = reduce(joined, [each.seen for each in collected])
    samples = [sample for each in drawn for sample in each.samples]
    row = reward_metrics(seen, world) | wait_metrics(seen, step_s, world)
    for each in collected if (shared := _shared(config)) else ():
        found = reward_metrics(each.seen, world)
        row |= {each.drawn.task.key(key): value for key, value in found.items() if key.startswith(shared)}
    if config.sampling.max_resamples:
        row["resampled"] = len(seen.ids) / len(samples) - 1
    rollouts = [rollout for each in drawn for rollout in each.rollouts]
    row |= rollout_statistics(rollouts, world)
    phases = {name: sum(each.phases.get(name, 0.0) for each in drawn) for each in drawn for name in each.phases}
    row |= session.gauges.metrics(
        scored_s,
        sampling_s=sum(each.sampling_s for each in drawn),
        sampling_flops=sum(each.flops for each in drawn),
        phases=phases,
    )
    images = sum(bool(sample.images) for sample in samples)
    if images:
        row["images_per_s"] = images * world.size / step_s
    for each in collected:
        # A task that draws may plan its images in words: these are no answers, and their lengths are not mixed with those of answers.
        texts = text_metrics(each.drawn.rollouts, each.scores, config.rewards, world, step_s)
        if each.drawn.task.name == DRAWS:
            row |= {f"plan/{name}": texts[f"text/{name}"] for name in PLANS if texts}
            row |= image_entropy(each.drawn.rollouts, world)
        else:
            row |= texts
    return row


def _shared(config: Config) -> tuple[str, ...]:
    """What the keys of rewards begin with that several tasks ask for: a mean over answers and images together says nothing of
    either, so that each task has its own beside it."""
    asked = Counter(name for task in config.tasks for name in trained_by(config, task.name))
    return tuple(f"reward/{name}/" for name, count in asked.items() if count > 1)


def loss_shares(tasks: Sequence[Task], row: Mapping[str, float]) -> dict[str, float]:
    """`<task>/loss_share`: how much of what moves the weights is each task's, by the sizes of its policy terms; empty for a
    policy with one kind of task, and where an objective of the user's own tells no such size."""
    named = [task for task in tasks if task.name]
    if any(task.key("loss/pull") not in row for task in named):
        return {}
    pulls = {task.key("loss_share"): task.loss_weight * row[task.key("loss/pull")] for task in named}
    together = sum(pulls.values())
    return {name: pull / together for name, pull in pulls.items()} if together else {}
