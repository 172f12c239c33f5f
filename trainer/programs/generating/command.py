"""The command: prompts in, pictures and texts out."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from trainer.config import Config, ConfigError
from trainer.config.generation import GenerationConfig
from trainer.data.prompts import read_prompt_file
from trainer.evaluation.thinking import instructions_of
from trainer.policies.base import Samples
from trainer.policies.generation import Instructions
from trainer.policies.registry import build_policy
from trainer.processes.distributed import World, world
from trainer.processes.run_lock import Words, run_lock
from trainer.programs.evaluate import BASE, Weights, load_weights, named_or_newest
from trainer.programs.generating.folder import OutputFolder
from trainer.programs.generating.makers import idle_settings, maker
from trainer.programs.generating.scoring import Scoring, has_failed, table
from trainer.programs.services import addresses, begin_services
from trainer.rewards import LocalServices, RewardClient, resolve_urls
from trainer.rewards.asked import Requests, texts_of
from trainer.seeds import sample_seed
from trainer.types import Prompt, Sample

_WORDS = Words("output folder", "generates", ("give another --output",) * 2)


@dataclass(frozen=True)
class Asked:
    """A sample that is to be made."""

    id: str
    prompt: Prompt
    seed: int


def generate(
    config: Config,
    prompts: Path,
    output: Path,
    settings: GenerationConfig,
    *,
    source: str | None = None,
    weights: Weights = "average",
    score: bool = False,
) -> Path:
    """Make what the settings ask for of every prompt, and go on where an earlier start was stopped.

    Args:
        prompts: a file or folder of prompts.
        output: its folder (`trainer.programs.generating.folder`).
        source: a checkpoint's or a run's folder, `checkpoints/best`, or `base`; None is the newest of the recipe's run.
        weights: which of a checkpoint's weights.
        score: have all samples scored by all rewards of the recipe, those of an earlier start, too.

    Returns:
        The folder.

    Raises:
        ConfigError: the policy cannot do what is asked for, or the folder is of something else.
        OutputError: the folder cannot be written.
        DataError, CheckpointError, RewardServiceError, StopTrainingError: as in an evaluation.
    """
    if score and not config.rewards.columns:
        raise ConfigError(
            "--score asks the recipe's rewards, and it has none; add rewards.columns, or leave --score out"
        )
    checkpoint = None if source == BASE else named_or_newest(source, config.run_dir)
    asked = _asked(read_prompt_file(prompts, dataset=prompts.stem).prompts, settings)
    label = BASE if checkpoint is None else f"{checkpoint.path.absolute()} (step {checkpoint.step}, {weights})"
    instructions = instructions_of(config)
    told = {
        "weights": label,
        "recipe": _recipe(config, instructions),
        "prompts": _identity(asked),
        **settings.model_dump(exclude={"batch_size"}),
    }
    with ExitStack() as stack:
        group = stack.enter_context(world(config.distributed))
        if group.is_main:
            stack.enter_context(run_lock(output, _WORDS))
        group.barrier()  # only one start cuts off lines that a killed one has left
        folder = OutputFolder(output, told, group.rank)
        services = begin_services(config.rewards, stack, folder.folder / "logs") if score else None
        torch.manual_seed(config.seed)  # as training does: what has no file starts from random weights
        policy: Samples = build_policy(config.policy, group.device, keep_reference=False)
        made_by = maker(policy, config, settings)
        if group.is_main:
            for sentence in idle_settings(
                policy, config, settings, edits=any(each.prompt.source_images for each in asked)
            ):
                print(f"generate: {sentence}", file=sys.stderr)
        policy.check_prompts([each.prompt for each in asked[:: settings.samples]])
        if checkpoint is not None:
            load_weights(policy, checkpoint, weights)
        scoring = _scoring(config, group, stack, folder, services) if score else None
        mine, there = asked[group.rank :: group.size], folder.made()
        group.barrier()  # all have seen what is there before one adds to it
        if scoring is not None:
            _score_old(scoring, mine, there, folder, settings)
        todo = [each for each in mine if each.id not in there]
        for batch in _watched(todo, settings.batch_size, len(mine), shown=group.is_main):
            found = made_by.generate(
                [each.prompt for each in batch], [each.seed for each in batch], settings, instructions
            )
            rows = [folder.add(each.id, each.prompt, made) for each, made in zip(batch, found, strict=True)]
            if scoring is not None:
                scoring.submit([_sample(each, row, folder) for each, row in zip(batch, rows, strict=True)])
        if scoring is not None:
            scoring.finish()
        group.barrier()
        if group.is_main and score:
            print(table(folder.scored(), list(config.rewards.columns)))
    return output


def _asked(prompts: Sequence[Prompt], settings: GenerationConfig) -> list[Asked]:
    """The samples, those of a prompt side by side. A sample's seed comes from its prompt's id and its number, so that it is the same
    in any file and at any start."""
    return [
        Asked(f"{prompt.id}#{number}", prompt, sample_seed(settings.seed, "generate", prompt.id, number))
        for prompt in prompts
        for number in range(settings.samples)
    ]


def _recipe(config: Config, instructions: Instructions) -> str:
    """A hash of what a recipe says of a sample beside the settings: the policy, how it samples, and the fixed sentences."""
    told = [config.policy.model_dump(mode="json"), config.sampling.model_dump(mode="json"), config.seed]
    told += [instructions.think, instructions.refine]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _identity(asked: Sequence[Asked]) -> str:
    """A hash of what is made, so that a folder is not gone on with for other prompts."""
    told = [[each.id, each.prompt.text, each.prompt.source_images] for each in asked]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _scoring(
    config: Config, group: World, stack: ExitStack, folder: OutputFolder, services: LocalServices | None
) -> Scoring:
    urls = addresses(services, group, print if group.is_main else None)
    found, asked = resolve_urls(config.rewards, urls), Requests(texts=texts_of(config))
    client = RewardClient(config.rewards, urls=found, is_main=group.is_main, requests=asked)
    return Scoring(stack.enter_context(client), folder, print)


def _score_old(
    scoring: Scoring,
    mine: Sequence[Asked],
    there: Mapping[str, Mapping[str, Any]],
    folder: OutputFolder,
    settings: GenerationConfig,
) -> None:
    """Send what an earlier start made, and did not have scored or got no answer for."""
    scored = folder.scored()
    left = [each for each in mine if each.id in there and (each.id not in scored or has_failed(scored[each.id]))]
    for first in range(0, len(left), settings.batch_size):
        scoring.submit([_sample(each, there[each.id], folder) for each in left[first : first + settings.batch_size]])


def _sample(asked: Asked, row: Mapping[str, Any], folder: OutputFolder) -> Sample:
    """What rewards are sent: the last image, and the first text, which is a thought or an answer."""
    texts = [text for step in row["steps"] for kind in ("thought", "answer") if (text := step.get(kind)) is not None]
    return Sample(asked.id, asked.prompt.id, asked.prompt, folder.image(row), texts[0] if texts else None)


def _watched(todo: Sequence[Asked], size: int, total: int, *, shown: bool) -> Iterator[Sequence[Asked]]:
    """Batches, with a bar of all samples of this process."""
    with tqdm(total=total, initial=total - len(todo), unit="sample", disable=not shown, mininterval=1.0) as bar:
        for first in range(0, len(todo), size):
            batch = todo[first : first + size]
            yield batch
            bar.update(len(batch))
