"""The supervised loss of a flow: flow matching on images and their texts. Axes: B images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import torch

from trainer.config import ConfigError, SftLossConfig
from trainer.losses import Stats, diffuse, matching_error
from trainer.objectives.base import Term
from trainer.objectives.flow.noise import NoiseLevels
from trainer.policies.base import Denoises, Expects
from trainer.seeds import sample_seed
from trainer.types import Captioned, Prompt, StopTrainingError


class Captions(Protocol):
    """Where images with texts come from."""

    @property
    def texts(self) -> Sequence[str]:
        """All texts that may be drawn."""
        ...

    def draw(self, update: int, places: Sequence[int]) -> Captioned:
        """The images of these places of update number `update`. Raises RuntimeError, ConfigError: they cannot be read."""
        ...


@dataclass(frozen=True)
class CaptionBatch:
    """This rank's share of the images of an update; its parts are `micro_batch_size` rows of it.

    Attributes:
        drawn: B images with their texts.
        places: which of the update's images these are, over all ranks.
        number: of the update in the whole run; what is random depends on it.
        update: of the update among those of its step.
        weight: of every image.
    """

    drawn: Captioned
    places: Sequence[int]
    number: int
    update: int
    weight: float = 1.0
    kind: ClassVar[str] = "images"

    def to(self, device: torch.device) -> Self:
        return self  # `encode_images` moves a part when it is needed

    def weightless(self) -> Self:
        return replace(self, weight=0.0, drawn=replace(self.drawn, skipped=0))


class Supervised:
    """Flow matching (arXiv 2210.02747) on a data set; its gradient keeps what the rewards do not speak of.

    All images of a step are drawn before its first update, so that a broken data set stops the run between two steps.

    Args:
        share: (r, n): this is rank r of n.
        updates: optimizer steps of a training step.

    Raises:
        ConfigError: the data set cannot be used, or its batch cannot be shared among the ranks.
    """

    requires: ClassVar[type] = Denoises
    leads: ClassVar[Sequence[str]] = ("images",)

    def __init__(
        self,
        policy: Denoises,
        config: SftLossConfig,
        captions: Captions,
        seed: int,
        *,
        share: tuple[int, int] = (0, 1),
        updates: int = 1,
    ) -> None:
        rank, ranks = share
        if config.batch_size % ranks:
            raise ConfigError(
                f"sft.batch_size = {config.batch_size} pictures cannot be shared by {ranks} ranks; make it "
                f"a multiple of {ranks}"
            )
        size = config.batch_size // ranks
        self.policy, self.config, self.captions, self.seed, self.updates = policy, config, captions, seed, updates
        self.places = range(rank * size, (rank + 1) * size)
        self.levels = NoiseLevels.of(config)
        policy.check_prompts([_prompt(text) for text in captions.texts])
        self._check_first_image()

    def batches(self, fed: Any, step: int) -> list[CaptionBatch]:
        """One for each update of the step, where the step is one of `every`; what is fed is not looked at."""
        if step % self.config.every:
            return []
        first = step * self.updates
        try:
            batches = [
                CaptionBatch(self.captions.draw(first + n, self.places), self.places, first + n, n)
                for n in range(self.updates)
            ]
        except (RuntimeError, ConfigError) as error:
            raise StopTrainingError(str(error)) from error
        if isinstance(self.policy, Expects):
            self.policy.expect([self._prompts(each, slice(None)) for each in batches])
        return batches

    def counts(self, batch: CaptionBatch) -> dict[str, float]:
        return {"images": float(len(batch.places))}

    def num_parts(self, batch: CaptionBatch) -> int:
        return -(-len(batch.places) // self._micro_batch_size(batch))

    def terms(self, batch: CaptionBatch, part: int) -> tuple[list[Term], Stats]:
        size = self._micro_batch_size(batch)
        rows = slice(part * size, (part + 1) * size)
        x0 = self.policy.encode_images(batch.drawn.pixels_BHWC[rows])
        sigma_B, noise = self.levels.draw(self._seeds(batch, rows), x0)
        v = self.policy.predict(self._prompts(batch, rows), diffuse(x0, noise, sigma_B), sigma_B)
        loss = batch.weight * matching_error(v, x0, noise).sum()
        # The skipped ones of a batch are told once, with its first part.
        skipped = torch.full((), 0.0 if part else float(batch.drawn.skipped), device=loss.device)
        return [Term("loss/sft", loss, "images")], Stats(torch.zeros_like(skipped), totals={"sft/skipped": skipped})

    def _check_first_image(self) -> None:
        """So that a wrong folder or size is found before the first step."""
        try:
            self.policy.encode_images(self.captions.draw(0, [0]).pixels_BHWC)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"sft: the first picture cannot be used: {error}") from error

    def _micro_batch_size(self, batch: CaptionBatch) -> int:
        return self.config.micro_batch_size or len(batch.places)

    def _seeds(self, batch: CaptionBatch, rows: slice) -> list[int]:
        return [sample_seed(self.seed, "sft_noise", batch.number, place) for place in batch.places[rows]]

    def _prompts(self, batch: CaptionBatch, rows: slice) -> list[Prompt]:
        kept = zip(batch.drawn.texts[rows], self._seeds(batch, rows), strict=True)
        return [_prompt(self._kept(text, seed)) for text, seed in kept]

    def _kept(self, text: str, seed: int) -> str:
        """The text, or nothing for the share of them that teaches the model to go without (arXiv 2207.12598)."""
        drop = torch.rand((), generator=torch.Generator().manual_seed(sample_seed(seed, "dropout"))).item()
        return "" if drop < self.config.prompt_dropout else text


def _prompt(text: str) -> Prompt:
    return Prompt(id="sft", text=text, dataset="sft")
