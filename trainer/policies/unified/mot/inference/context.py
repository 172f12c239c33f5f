"""What a Mixture-of-Transformers goes on from: texts and images in order, some of them made by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from trainer.config import ConfigError
from trainer.data.sequences import ImageItem, Item, SequencePlan, TextItem
from trainer.policies.base import Laying
from trainer.policies.unified.mot.lay import LaidRow, lay_row
from trainer.policies.unified.mot.model import MotModel
from trainer.policies.unified.mot.pictures import read_rgb
from trainer.types import Prompt

Size = tuple[int, int]  # latent tokens of an image, rows and columns
EVERYTHING = Laying(seed=0)
# What guidance leads away from: the same without its texts, or without its images, left out as they are in training.
NO_TEXTS = Laying(seed=0, drop_text=1.0)
NO_IMAGES = Laying(seed=0, drop_clean=1.0, drop_seen=1.0)


@dataclass(frozen=True)
class Context:
    """Texts and images in order.

    Attributes:
        id: of the prompt, for messages.
        made: images that no file holds, uint8 (H, W, 3), by the name that stands in place of a path.
    """

    id: str
    items: tuple[Item, ...] = ()
    made: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def has_images(self) -> bool:
        return any(isinstance(item, ImageItem) for item in self.items)

    def asked(self, prompt: Prompt) -> Context:
        """With a prompt behind it as rows of training have it: its text, then its source images. An empty text is none, as it is left
        out in training."""
        context = self.said(prompt.text) if prompt.text else self
        for path in prompt.source_images:
            context = context.shown(path)
        return context

    def questioned(self, prompt: Prompt) -> Context:
        """With a question behind it: its images are seen, then its text is read."""
        context = self
        for path in prompt.source_images:
            seen = ImageItem(path, "seen", droppable=True, among=len(prompt.source_images))
            context = replace(context, items=(*context.items, seen))
        return context.said(prompt.text)

    def said(self, text: str) -> Context:
        """With a text behind it."""
        return replace(self, items=(*self.items, TextItem(text, droppable=True)))

    def shown(self, path: str) -> Context:
        """With an image behind it as it is read before more is drawn: by its latents, then seen."""
        clean, seen = ImageItem(path, "clean", droppable=True), ImageItem(path, "seen", droppable=True)
        return replace(self, items=(*self.items, clean, seen))

    def drawn(self, image: np.ndarray) -> Context:
        """With an image behind it that was just drawn, as `shown`."""
        name = f"drawn image {len(self.made) + 1}"
        return replace(self, made={**self.made, name: image}).shown(name)

    def laid(self, model: MotModel, laying: Laying = EVERYTHING, canvas: Size | None = None) -> LaidRow:
        """As tokens, with the place of an image of so many latent tokens at the end. Raises ConfigError naming the prompt."""
        plan = SequencePlan(f"prompt {self.id!r}", self.items)
        return lay_row(plan, laying, model.words, model.ways, reader=self._read, canvas=canvas)

    def _read(self, path: str) -> Image.Image:
        return Image.fromarray(self.made[path]) if path in self.made else read_rgb(path)


def canvas_size(model: MotModel, height: int | None, width: int | None) -> Size:
    """Latent tokens of an image of this size in pixels; None is the model's own. Raises ConfigError with the nearest that fits."""
    side, most = model.ways.token_side, model.ways.latent_side
    asked = [model.ways.latent.longest if each is None else each for each in (height, width)]
    fits = [min(max(round(each / side), 1), most) for each in asked]
    if [each * side for each in fits] != asked:
        raise ConfigError(
            f"images of {asked[0]} x {asked[1]} pixels cannot be drawn: sides must be multiples of {side} up to {side * most}; the "
            f"nearest is {fits[0] * side} x {fits[1] * side}"
        )
    return fits[0], fits[1]
