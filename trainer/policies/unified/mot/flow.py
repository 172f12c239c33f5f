"""A Mixture-of-Transformers as the velocity of a rectified flow: what it is drawn by in training, with gradients through all of it.

A prompt is laid out as a row of training is: text, source images, then the image to be drawn. Images of one prompt that stand side
by side share its context: each is a noised copy, and sees nothing of the others.

Axes: B images, N latent tokens of an image, C numbers of a latent token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn

from trainer.config import ConfigError
from trainer.policies.base import Laying
from trainer.policies.flow.policy import Conditioning
from trainer.policies.lora import autocast
from trainer.policies.unified.mot.inference.context import Context, Size, canvas_size
from trainer.policies.unified.mot.model import MotModel
from trainer.policies.unified.mot.network import MotNetwork
from trainer.policies.unified.mot.pack import Pack, pack_rows
from trainer.policies.unified.mot.vision import from_patches, to_patches
from trainer.samplers.schedules import sigmas
from trainer.types import Prompt

_SHIFT = 3.0  # of the noise levels that BAGEL draws by
_NAMED = 3  # prompts that cannot be read that a message names


class Rows(dict[str, Tensor]):
    """Prompts as the network reads them, once for every size of image that is drawn of them."""

    def __init__(self, model: MotModel, contexts: Sequence[tuple[Context, int]]) -> None:
        super().__init__()
        self._model, self._contexts = model, contexts
        self._packs: dict[Size, Pack] = {}

    def pack(self, size: Size) -> Pack:
        """With a canvas of this size for each image."""
        if size not in self._packs:
            rows = [
                context.laid(self._model, Laying(seed=0, copies=copies), canvas=size)
                for context, copies in self._contexts
            ]
            model = self._model
            self._packs[size] = pack_rows(rows, model.codec, model.network.geometry, model.device, model.way)
        return self._packs[size]


class MotFlow:
    """Implements `trainer.policies.flow.policy.FlowModel`."""

    def __init__(self, model: MotModel) -> None:
        self._model = model
        self.device, self.about = model.device, model.about

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
        return Rows(
            self._model, [(Context(prompt.id).asked(prompt), len(list(same))) for prompt, same in groupby(prompts_B)]
        )

    def velocity(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        patch = self._model.codec.latent_patch
        height, width = x.shape[-2] // patch, x.shape[-1] // patch
        given = cast(Rows, conditioning).pack((height, width))
        tokens, drawn = given.tokens, given.drawn_L
        latents, levels = tokens.latents.clone(), tokens.levels_I.clone()
        latents[drawn] = torch.cat([to_patches(each, patch) for each in x])
        # Images are numbered in the order of their tokens, so that the drawn ones come in the order of x.
        levels[tokens.image_G[drawn].unique_consecutive()] = sigma_B.to(levels.dtype)
        with autocast(self._model.config, self.device):
            _, gen = network(replace(tokens, latents=latents, levels_I=levels), given.attends)
            v = cast(MotNetwork, network).velocity(gen[drawn])
        return from_patches(v.unflatten(0, (len(x), -1)), height, width, patch)

    def to_latents(self, pixels_BHWC: Tensor) -> Tensor:
        return self._model.to_latents(pixels_BHWC)

    def decode(self, latents: Tensor) -> Tensor:
        return self._model.decode(latents)
