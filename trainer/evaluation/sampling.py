"""Draws the samples of an evaluation set: fixed noise, the deterministic ODE, each rank its share of the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.config import Config
from trainer.evaluation.sets import EvaluationSet
from trainer.evaluation.thinking import think_and_draw
from trainer.policies.base import Samples
from trainer.policies.registry import entry_of
from trainer.processes.distributed import World, even_share
from trainer.seeds import sample_seed
from trainer.types import Prompt, Sample


@dataclass(frozen=True)
class Placed:
    """A sample of a set, with its place: which prompt, and which of the prompt's samples."""

    index: int
    duplicate: int
    sample: Sample


def evaluation_seed(seed: int, index: int, duplicate: int) -> int:
    """The noise of a sample: the same at every evaluation, whatever else is in the set."""
    return sample_seed(seed, "evaluation", index, *([duplicate] if duplicate else []))


def draw(policy: Samples, chosen: EvaluationSet, config: Config, world: World) -> Iterator[list[Placed]]:
    """This rank's samples of a set in micro-batches, as they are decoded.

    Every rank makes equally many forward passes, which sharded weights need: where the prompts cannot be dealt evenly,
    some ranks draw their last prompt again, and it is dropped here. A micro-batch of which nothing is left is an empty
    list, so that all ranks come back from here equally often.
    """
    mine = even_share(len(chosen.prompts), world.rank, world.size)
    indices = mine.indices
    seeds = [evaluation_seed(config.evaluation.seed, i, d) for i in indices for d in range(chosen.duplicates)]
    number = 0
    for samples in _samples(policy, [chosen.prompts[i] for i in indices], seeds, chosen, config):
        places = [divmod(number + n, chosen.duplicates) for n in range(len(samples))]
        number += len(samples)
        yield [
            Placed(indices[place], duplicate, sample)
            for (place, duplicate), sample in zip(places, samples, strict=True)
            if place < mine.real
        ]


def _samples(
    policy: Samples, prompts_P: Sequence[Prompt], seeds_B: Sequence[int], chosen: EvaluationSet, config: Config
) -> Iterator[Sequence[Sample]]:
    """The set's samples of these prompts, a prompt's side by side, in micro-batches."""
    if chosen.think is not None:
        yield from think_and_draw(policy, prompts_P, seeds_B, chosen, config)
        return
    plan = entry_of(config.policy).family.evaluation_plan(config, chosen)
    for rollout in policy.sample(prompts_P, chosen.duplicates, seeds_B, plan):
        yield rollout.samples
