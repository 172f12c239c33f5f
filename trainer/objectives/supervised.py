"""The supervised loss beside an objective: flow matching on pictures and their texts. Axes: B pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config import ConfigError, SftLossConfig
from trainer.losses import diffuse, matching_error
from trainer.objectives.captions import BrokenPicturesError, CaptionData, Captioned
from trainer.objectives.noise import NoiseLevels
from trainer.policies.base import Denoises
from trainer.processes.distributed import World
from trainer.seeds import sample_seed
from trainer.types import Prompt, StopTrainingError


@dataclass(frozen=True)
class SupervisedBatch:
    """This rank's share of the pictures of an update; its micro-batches are `micro_batch_size` rows of it."""

    pictures: Captioned
    places: Sequence[int]
    update: int


class Supervised:
    """Flow matching (arXiv 2210.02747) on a data set; its gradient keeps what the rewards do not speak of.

    Raises:
        ConfigError: the data set cannot be used, or its batch cannot be shared among the ranks.
    """

    def __init__(self, policy: Denoises, config: SftLossConfig, world: World, seed: int) -> None:
        if config.batch_size % world.size:
            raise ConfigError(
                f"sft.batch_size = {config.batch_size} pictures cannot be shared by {world.size} ranks; make it "
                f"a multiple of {world.size}"
            )
        self.policy, self.config, self.world, self.seed = policy, config, world, seed
        self.levels = NoiseLevels.of(config)
        self.data = CaptionData(config, seed)
        policy.check_prompts([_prompt(text) for text in self.data.texts])
        self._check_first_picture()

    def is_due(self, step: int) -> bool:
        """Whether the updates after `step` training steps have this loss."""
        return step % self.config.every == 0

    def draw(self, update: int) -> SupervisedBatch:
        """This rank's pictures of update number `update`. All ranks call it together.

        Raises:
            StopTrainingError: on all ranks, when one of them finds too many broken pictures.
        """
        share = self.config.batch_size // self.world.size
        places = range(self.world.rank * share, (self.world.rank + 1) * share)
        pictures, problem = None, None
        try:
            pictures = self.data.draw(update, places)
        except (BrokenPicturesError, ConfigError) as error:
            problem = str(error)
        problems = [each for each in self.world.gather(problem) if each]
        if problems or pictures is None:
            raise StopTrainingError(problems[0])
        return SupervisedBatch(pictures, places, update)

    def num_chunks(self, batch: SupervisedBatch) -> int:
        return -(-len(batch.places) // self._micro_batch_size(batch))

    def chunk(self, batch: SupervisedBatch, column: int) -> Tensor:
        """Sum of the matching errors of micro-batch `column`, divided by the pictures of all ranks: 0-d, float32."""
        size = self._micro_batch_size(batch)
        rows = slice(column * size, (column + 1) * size)
        x0 = self.policy.encode_images(batch.pictures.pixels_BHWC[rows])
        seeds_B = [sample_seed(self.seed, "sft_noise", batch.update, place) for place in batch.places[rows]]
        sigma_B, noise = self.levels.draw(seeds_B, x0)
        texts = [self._kept(text, seed) for text, seed in zip(batch.pictures.texts[rows], seeds_B, strict=True)]
        v = self.policy.predict([_prompt(text) for text in texts], diffuse(x0, noise, sigma_B), sigma_B)
        return matching_error(v, x0, noise).sum() / self.config.batch_size

    def _check_first_picture(self) -> None:
        """So that a wrong folder or size is found before the first step."""
        try:
            self.policy.encode_images(self.data.draw(0, [0]).pixels_BHWC)
        except (BrokenPicturesError, ValueError) as error:
            raise ConfigError(f"sft: the first picture cannot be used: {error}") from error

    def _micro_batch_size(self, batch: SupervisedBatch) -> int:
        return self.config.micro_batch_size or len(batch.places)

    def _kept(self, text: str, seed: int) -> str:
        """The text, or nothing for the share of them that teaches the model to go without (arXiv 2207.12598)."""
        drop = torch.rand((), generator=torch.Generator().manual_seed(sample_seed(seed, "dropout"))).item()
        return "" if drop < self.config.prompt_dropout else text


def _prompt(text: str) -> Prompt:
    return Prompt(id="sft", text=text, dataset="sft")
