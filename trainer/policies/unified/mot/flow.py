"""A Mixture-of-Transformers as the velocity of a rectified flow: what it is drawn by in training, with gradients through all of it.

A prompt is laid out as a row of training is: text, source images, then the image to be drawn. Images of one prompt that stand side
by side share its context: each is a noised copy, and sees nothing of the others.

Axes: B images, N latent tokens of an image, C numbers of a latent token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn

from machine.transfers import numbers
from trainer.config import ConfigError
from trainer.policies.base import Laying
from trainer.policies.flow.guided import away_from
from trainer.policies.flow.policy import Conditioning
from trainer.policies.lora import autocast
from trainer.policies.unified.mot.inference.context import EVERYTHING, NO_IMAGES, Context, Size, canvas_size
from trainer.policies.unified.mot.model import MotModel
from trainer.policies.unified.mot.network import MotNetwork
from trainer.policies.unified.mot.pack import Pack, pack_rows
from trainer.policies.unified.mot.vision import from_patches, to_patches
from trainer.samplers.guidance import Guidance, guided_velocity
from trainer.samplers.schedules import sigmas
from trainer.types import Prompt

_SHIFT = 3.0  # of the noise levels that BAGEL draws by
_NAMED = 3  # prompts that cannot be read that a message names


class Rows(dict[str, Tensor]):
    """Prompts as the network reads them, once for every size of image that is drawn of them."""

    def __init__(self, model: MotModel, contexts: Sequence[tuple[Context, Laying]]) -> None:
        super().__init__()
        self._model, self._contexts = model, contexts
        self._packs: dict[Size, Pack] = {}

    def pack(self, size: Size) -> Pack:
        """With a canvas of this size for each image."""
        if size not in self._packs:
            rows = [context.laid(self._model, laying, canvas=size) for context, laying in self._contexts]
            model = self._model
            self._packs[size] = pack_rows(rows, model.codec, model.network.geometry, model.device, model.way)
        return self._packs[size]


class MotFlow:
    """Implements `trainer.policies.flow.policy.FlowModel`."""

    def __init__(self, model: MotModel) -> None:
        self._model = model
        self.device, self.about = model.device, model.about
        self._guided: tuple[tuple[Any, ...], Rows] = ((), Rows(model, []))  # of the last micro-batch, for its next step

    @property
    def network(self) -> nn.Module:
        return self._model.network

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ConfigError naming the first prompts that cannot be read, and their number."""
        problems = []
        for prompt in prompts:
            try:
                Context(prompt.id).asked(prompt).laid(self._model)
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            listed = "\n  ".join(problems[:_NAMED])
            raise ConfigError(f"{len(problems)} of {len(prompts)} prompts cannot be read. The first:\n  {listed}")

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, ...]:
        codec, size = self._model.codec, canvas_size(self._model, height, width)
        return codec.channels, *(each * codec.latent_patch for each in size)

    def noise_levels(self, num_steps: int, height: int | None, width: int | None) -> list[float]:
        levels: list[float] = sigmas(num_steps, _SHIFT).tolist()
        return levels

    def encode(self, prompts_B: Sequence[Prompt]) -> Conditioning:
        """Words and source images; embeddings are the network's, and trained with it."""
        return Rows(self._model, _contexts(prompts_B, EVERYTHING))

    def velocity(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        patch = self._model.codec.latent_patch
        height, width = x.shape[-2] // patch, x.shape[-1] // patch
        given = cast(Rows, conditioning).pack((height, width))
        tokens, drawn = given.tokens, given.drawn_L
        drawn_x = torch.cat([to_patches(each, patch) for each in x])
        latents = tokens.latents.index_copy(0, drawn, drawn_x.to(tokens.latents.dtype))
        # Images are numbered in the order of their tokens, so that the drawn ones come in the order of x.
        levels = tokens.levels_I.index_copy(0, given.drawn_I, sigma_B.to(tokens.levels_I.dtype))
        with autocast(self._model.config, self.device):
            _, gen = network(replace(tokens, latents=latents, levels_I=levels), given.attends)
            v = cast(MotNetwork, network).velocity(gen.index_select(0, drawn))
        return from_patches(v.unflatten(0, (len(x), -1)), height, width, patch)

    def guided_velocity(
        self, network: nn.Module, x: Tensor, sigma: float, prompts_B: Sequence[Prompt], guidance: Guidance
    ) -> Tensor:
        """As `generate` draws: away from the negative prompt, or from no text, then from the row whose images are left out as in training;
        of a prompt without source images by the text alone. Outside the interval, and with scales of 1, no branch is computed."""
        now = guidance.at(sigma)
        without_text = list(range(len(x))) if now.text != 1 else []
        pictured = [n for n, prompt in enumerate(prompts_B) if prompt.source_images] if now.image != 1 else []
        counts = len(x), len(without_text), len(pictured)
        rows = numbers([*range(len(x)), *without_text, *pictured], x.device)
        conditioning = self._branches(prompts_B, text=bool(without_text), images=bool(pictured))
        v = self.velocity(
            network, x.index_select(0, rows), torch.full((sum(counts),), sigma, device=x.device), conditioning
        )
        patch = self._model.codec.latent_patch
        cond, no_text, no_images = torch.stack([to_patches(each, patch) for each in v]).split(counts)
        if not without_text and not pictured:
            return v
        plain = [n for n in range(len(x)) if n not in set(pictured)]
        found = []
        for chosen, away, scales in ((pictured, no_images, now), (plain, None, replace(now, image=1.0))):
            if chosen:
                index = numbers(chosen, x.device)
                apart = no_text.index_select(0, index) if without_text else None
                found.append(guided_velocity(cond.index_select(0, index), apart, away, scales))
        order = numbers([*pictured, *plain], x.device).argsort()
        tokens = torch.cat(found).index_select(0, order)
        return from_patches(tokens, x.shape[-2] // patch, x.shape[-1] // patch, patch)

    def _branches(self, prompts_B: Sequence[Prompt], *, text: bool, images: bool) -> Rows:
        """The prompts; with `text` the same without their texts; with `images` those that have source images without these."""
        key = (*prompts_B, text, images)
        if self._guided[0] != key:
            contexts = _contexts(prompts_B, EVERYTHING)
            contexts += _contexts([away_from(prompt) for prompt in prompts_B], EVERYTHING) if text else []
            contexts += _contexts([prompt for prompt in prompts_B if prompt.source_images], NO_IMAGES) if images else []
            self._guided = key, Rows(self._model, contexts)
        return self._guided[1]

    def to_latents(self, pixels_BHWC: Tensor) -> Tensor:
        return self._model.to_latents(pixels_BHWC)

    def decode(self, latents: Tensor) -> Tensor:
        return self._model.decode(latents)


def _contexts(prompts_B: Sequence[Prompt], laying: Laying) -> list[tuple[Context, Laying]]:
    """Of each run of equal prompts one, with as many images to draw."""
    runs = [(prompt, len(list(same))) for prompt, same in groupby(prompts_B)]
    return [(Context(prompt.id).asked(prompt), replace(laying, copies=copies)) for prompt, copies in runs]
