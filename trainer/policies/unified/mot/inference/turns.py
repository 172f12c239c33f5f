"""Thinks, draws, looks, suggests and draws again: what comes of prompts, turn by turn, in the order that rows of training have.

| asked for | turns |
|---|---|
| draw | text, its source images, then the image |
| think | a fixed sentence first; a thought is written before the image |
| refine | another fixed sentence, text, source images, thought, the image so far; a suggestion is written, the image drawn again |
| answer | source images, text, then the answer |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from trainer.config.generation import GenerationConfig
from trainer.policies.generation import Instructions, Made, Purpose, Written
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.llama.layout import is_cut
from trainer.policies.unified.mot.inference import engine
from trainer.policies.unified.mot.inference.context import EVERYTHING, NO_IMAGES, NO_TEXTS, Context, Size, canvas_size
from trainer.policies.unified.mot.model import MotModel
from trainer.policies.unified.mot.vision import from_patches, to_patches
from trainer.samplers.guidance import Guidance
from trainer.samplers.schedules import sigmas
from trainer.seeds import sample_seed
from trainer.types import Prompt

_FRAMES: dict[Purpose, tuple[str, str]] = {"thought": ("<think>", "</think>"), "suggestion": ("<sugg>", "</sugg>")}


@dataclass
class _Row:
    """A prompt on its way."""

    prompt: Prompt
    seed: int
    context: Context
    size: Size
    steps: list[Written | np.ndarray] = field(default_factory=list)


class Turns:
    """Does what settings ask for, with all prompts of a batch side by side."""

    def __init__(self, model: MotModel, settings: GenerationConfig, instructions: Instructions) -> None:
        self._model, self._settings, self._instructions = model, settings, instructions
        self._schedule: list[float] = sigmas(settings.num_inference_steps, settings.shift).tolist()

    def made(self, prompts_B: Sequence[Prompt], seeds_B: Sequence[int]) -> list[Made]:
        """What comes of each prompt. Raises ConfigError naming a prompt that cannot be read."""
        settings = self._settings
        rows = [self._begun(prompt, seed) for prompt, seed in zip(prompts_B, seeds_B, strict=True)]
        if settings.task == "answer":
            self._write(rows, "answer", 0)
            return [Made(tuple(row.steps)) for row in rows]
        if settings.think:
            self._write(rows, "thought", 0)
        self._draw(rows, 0, settings.text_guidance)
        for row in rows if settings.refine else ():
            row.context = self._looked_back(row)
        going = rows
        for turn in range(1, settings.refine + 1):
            self._write(going, "suggestion", turn)
            # An empty suggestion says that nothing is left to change: rows of training end with one.
            going = [row for row in going if isinstance(step := row.steps[-1], Written) and step.text]
            self._draw(going, turn, settings.refine_text_guidance)
        return [Made(tuple(row.steps)) for row in rows]

    def _begun(self, prompt: Prompt, seed: int) -> _Row:
        """What is known before anything is written or drawn."""
        context = Context(prompt.id)
        if self._settings.task == "answer":
            return _Row(prompt, seed, context.questioned(prompt), (0, 0))
        if self._settings.think:
            context = context.said(self._instructions.think)
        context = context.asked(prompt)
        return _Row(prompt, seed, context, self._size(context))

    def _size(self, context: Context) -> Size:
        """Latent tokens of the image: as asked for, or those of the last source image, or the model's own."""
        height, width = self._settings.height, self._settings.width
        if height is None and context.has_images:
            return context.laid(self._model).sizes[-1]
        return canvas_size(self._model, height, width)

    def _looked_back(self, row: _Row) -> Context:
        """The prompt once more, under the other sentence, with the thought and the image that came of it."""
        context = Context(row.prompt.id).said(self._instructions.refine).asked(row.prompt)
        thought = next((step.text for step in row.steps if isinstance(step, Written)), "")
        if context.has_images:  # as rows of training: an edit's thought is framed, and there even where it is empty
            context = context.said(_framed(thought, "thought"))
        elif thought:
            context = context.said(thought)
        (image,) = (step for step in row.steps if not isinstance(step, Written))
        return context.drawn(image)

    def _write(self, rows: Sequence[_Row], purpose: Purpose, turn: int) -> None:
        """Adds a text to each row and to its context."""
        if not rows:
            return
        settings, words = self._settings, self._model.words
        answers = engine.write(
            self._model,
            engine.read(self._model, [row.context.laid(self._model) for row in rows]),
            [sample_seed(row.seed, purpose, turn) for row in rows],
            TokenPlan(len(rows), settings.max_new_tokens, settings.temperature),
        )
        for row, answer in zip(rows, answers, strict=True):
            text = words.decode(answer.tokens_S.tolist())
            row.context = row.context.said(text)
            row.steps.append(Written(purpose, _bare(text, purpose), answer.finished))

    def _draw(self, rows: Sequence[_Row], turn: int, text_guidance: float) -> None:
        """Adds an image to each row, and to its context where it may be looked at."""
        for alike in self._alike(rows):
            size, with_images = alike[0].size, alike[0].context.has_images
            images = self._drawn(alike, size, turn, self._guidance(text_guidance, with_images=with_images))
            for row, image in zip(alike, images, strict=True):
                row.steps.append(image)
                if turn:
                    row.context = row.context.drawn(image)

    def _alike(self, rows: Sequence[_Row]) -> list[list[_Row]]:
        """Rows that are drawn together. Where ranks share the weights each by itself: another rank's rows may be of other sizes, and
        all ranks make equally many passes."""
        if is_cut(self._model.network):
            return [[row] for row in rows]
        kinds: dict[tuple[Size, bool], list[_Row]] = {}
        for row in rows:
            kinds.setdefault((row.size, row.context.has_images), []).append(row)
        return list(kinds.values())

    def _guidance(self, text: float, *, with_images: bool) -> Guidance:
        settings = self._settings
        image = settings.image_guidance if with_images else 1.0
        return Guidance(text, image, settings.guidance_interval, settings.renorm, settings.renorm_min)

    def _drawn(self, rows: Sequence[_Row], size: Size, turn: int, guidance: Guidance) -> list[np.ndarray]:
        layings = [EVERYTHING]
        layings += [NO_TEXTS] if guidance.text != 1 else []
        layings += [NO_IMAGES] if guidance.image != 1 else []
        noise_BNC = torch.stack([self._noise(row.seed, turn, size) for row in rows])
        x_BNC = engine.draw(
            self._model,
            [[row.context.laid(self._model, laying) for row in rows] for laying in layings],
            size,
            noise_BNC,
            self._schedule,
            guidance,
        )
        return list(self._model.decode(from_patches(x_BNC, *size, self._model.codec.latent_patch)).cpu().numpy())

    def _noise(self, seed: int, turn: int, size: Size) -> Tensor:
        """Latent tokens (N, C) of noise: the first image's is the one that the sampler of training draws with this seed."""
        codec = self._model.codec
        shape = codec.channels, *(each * codec.latent_patch for each in size)
        chosen = sample_seed(seed, "image", turn) if turn else seed
        return to_patches(torch.randn(shape, generator=torch.Generator().manual_seed(chosen)), codec.latent_patch)


def _framed(text: str, purpose: Purpose) -> str:
    first, last = _FRAMES[purpose]
    return f"{first}{text}{last}"


def _bare(text: str, purpose: Purpose) -> str:
    """Without the marks that stand around a thought or a suggestion."""
    first, last = _FRAMES.get(purpose, ("", ""))
    return text.strip().removeprefix(first).removesuffix(last).strip()
