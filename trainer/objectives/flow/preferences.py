"""Diffusion-DPO on given pairs of images, of which one is preferred. Axes: N pairs, B = 2N images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import torch

from trainer.config import ConfigError, PreferencesConfig
from trainer.config.objective import DiffusionDpoConfig
from trainer.losses import Stats, diffuse
from trainer.objectives.base import Term
from trainer.objectives.flow.forward import pair_terms
from trainer.objectives.flow.noise import NoiseLevels
from trainer.policies.base import Denoises, Expects
from trainer.seeds import sample_seed
from trainer.types import PreferredPairs, Prompt, StopTrainingError


class Preferences(Protocol):
    """Where pairs come from."""

    @property
    def texts(self) -> Sequence[str]:
        """All prompts that may be drawn."""
        ...

    def draw(self, step: int, places: Sequence[int]) -> PreferredPairs:
        """The pairs of these places of a step. Raises RuntimeError, ConfigError: they cannot be read."""
        ...


@dataclass(frozen=True)
class PreferenceBatch:
    """A micro-batch of pairs; its parts are noise levels.

    Attributes:
        drawn: N pairs.
        places: which of the step's pairs these are, over all ranks.
        step: finished training steps.
        weight: of every pair.
    """

    drawn: PreferredPairs
    places: Sequence[int]
    step: int
    weight: float = 1.0
    kind: ClassVar[str] = "pairs"
    update: ClassVar[None] = None

    def to(self, device: torch.device) -> Self:
        return self  # `encode_images` moves a micro-batch when it is needed

    def weightless(self) -> Self:
        return replace(self, weight=0.0, drawn=replace(self.drawn, skipped=0))


class DpoOnPairs:
    """Diffusion-DPO (arXiv 2311.12908) on a file of pairs; the reference is the policy with its starting weights.

    Args:
        share: (r, n): this is rank r of n.

    Raises:
        ConfigError: the pairs cannot be used, or a step's cannot be shared among the ranks.
    """

    requires: ClassVar[type] = Denoises
    leads: ClassVar[Sequence[str]] = ("terms",)

    def __init__(
        self,
        policy: Denoises,
        config: DiffusionDpoConfig,
        given: PreferencesConfig,
        data: Preferences,
        seed: int,
        *,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        rank, ranks = share
        if given.batch_size % ranks:
            raise ConfigError(
                f"preferences.batch_size = {given.batch_size} pairs cannot be shared by {ranks} ranks; make it a multiple of "
                f"{ranks}"
            )
        size = given.batch_size // ranks
        self.policy, self.config, self.data, self.seed = policy, config, data, seed
        self.places = range(rank * size, (rank + 1) * size)
        self.at_once = given.micro_batch_size or size
        self.levels = NoiseLevels.of(config)
        policy.check_prompts([_prompt(text) for text in data.texts])
        self._check_first_pair()

    def batches(self, fed: Any, step: int) -> list[PreferenceBatch]:
        """This rank's pairs of the step; what is fed is not looked at."""
        cuts = [self.places[first : first + self.at_once] for first in range(0, len(self.places), self.at_once)]
        try:
            batches = [PreferenceBatch(self.data.draw(step, places), places, step) for places in cuts]
        except (RuntimeError, ConfigError) as error:
            raise StopTrainingError(str(error)) from error
        if isinstance(self.policy, Expects):
            self.policy.expect([_prompts(each) for each in batches])
        return batches

    def counts(self, batch: PreferenceBatch) -> dict[str, float]:
        return {"terms": batch.weight * len(batch.places) * self.config.timestep_draws}

    def num_parts(self, batch: PreferenceBatch) -> int:
        return self.config.timestep_draws

    def terms(self, batch: PreferenceBatch, part: int) -> tuple[list[Term], Stats]:
        x0 = self.policy.encode_images(batch.drawn.pixels_BHWC)
        # The two of a pair share noise level and noise: what is compared is the images, not the luck of the draw.
        seeds_N = [sample_seed(self.seed, "preference_noise", batch.step, place, part) for place in batch.places]
        seeds_B = [seed for seed in seeds_N for _ in range(2)]
        sigma_B, noise = self.levels.draw(seeds_B, x0, stratum=(part, self.config.timestep_draws))
        x = diffuse(x0, noise, sigma_B)
        prompts_B = _prompts(batch)
        v = self.policy.predict(prompts_B, x, sigma_B)
        v_ref = self.policy.predict(prompts_B, x, sigma_B, reference=True)
        weight_N = torch.full((len(batch.places),), batch.weight, device=v.device)
        terms, stats = pair_terms(v, v_ref, x0, noise, weight_N, self.config)
        # The skipped pairs of a batch are told once, with its first part.
        skipped = torch.full((), 0.0 if part else float(batch.drawn.skipped), device=v.device)
        return terms, replace(stats, totals={"preferences/skipped": skipped})

    def _check_first_pair(self) -> None:
        """So that a wrong folder or size is found before the first step."""
        try:
            self.policy.encode_images(self.data.draw(0, [0]).pixels_BHWC)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"preferences: the first pair cannot be used: {error}") from error


def _prompts(batch: PreferenceBatch) -> list[Prompt]:
    """Of the two images of each pair."""
    return [_prompt(text) for text in batch.drawn.texts for _ in range(2)]


def _prompt(text: str) -> Prompt:
    return Prompt(id="preferences", text=text, dataset="preferences")
