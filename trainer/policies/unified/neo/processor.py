"""Texts and images as the native model takes them, behind the calls that transformers' processors have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trainer.config.neo import NeoConfig
from trainer.policies.unified.neo.geometry import NeoGeometry
from trainer.policies.unified.neo.images import Patches, cut, pixel_limit
from trainer.policies.unified.neo.rows import GRIDS, PATCH_PLACES, PATCHES
from trainer.policies.unified.neo.tokenizer import FRAMES, IMAGE, IMAGE_END, IMAGE_START


class NeoProcessor:
    """Stands where `AutoProcessor` gives another family's processor."""

    def __init__(self, geometry: NeoGeometry, tokenizer: Any, config: NeoConfig) -> None:
        self.geometry, self.tokenizer, self.config = geometry, tokenizer, config
        self.image_id, self.start_id, self.end_id = (
            int(each) for each in tokenizer.convert_tokens_to_ids(list(FRAMES))
        )

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False, tokenize: bool = False
    ) -> str:
        """The conversation as a text with one image token for each image, in its frame."""
        assert not tokenize, "an image's tokens are known when it is read"
        written = [{"role": each["role"], "content": _content(each["content"])} for each in messages]
        text: str = self.tokenizer.apply_chat_template(
            written, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        return text

    def __call__(
        self, *, text: Sequence[str], images: Sequence[Sequence[Image.Image]] = ((),), return_tensors: str = "pt"
    ) -> dict[str, Tensor]:
        """One text and its images.

        Returns:
            input_ids and attention_mask (1, T); with images also what `trainer.policies.unified.neo.rows` reads.

        Raises:
            ValueError: an image is too long for its width, or images and image tokens are not as many.
        """
        (written,), (given,) = text, images
        ids = self.encode(written)
        if (places := ids.count(self.image_id)) != len(given):
            raise ValueError(f"a text has {places} image tokens and {len(given)} images; they must be as many")
        patches = self.cut(given)
        filled: list[int] = []
        waiting = iter(patches)
        for each in ids:
            filled += [each] * (_count(next(waiting)) if each == self.image_id else 1)
        found = torch.tensor([filled], dtype=torch.int64)
        return {"input_ids": found, "attention_mask": torch.ones_like(found), **inputs_of(patches)}

    def cut(self, images: Sequence[Image.Image]) -> list[Patches]:
        """The images of one row. Raises ValueError as `cut` does."""
        config, geometry = self.config, self.geometry
        limit = pixel_limit(len(images), config.min_pixels, config.max_pixels)
        return [cut(each, geometry.patch_size, geometry.merge, config.min_pixels, limit) for each in images]

    def encode(self, text: str) -> list[int]:
        # By the tokenizer below: for a short text transformers' own costs five times as much, and it sets its truncation at each
        # call, which two threads must not do at once.
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def image_ids(self, patches: Patches) -> list[int]:
        """The ids of an image in its frame."""
        return [self.start_id, *[self.image_id] * _count(patches), self.end_id]

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer. The rest is in the model's configuration."""
        self.tokenizer.save_pretrained(folder)


def inputs_of(patches: Sequence[Patches]) -> dict[str, Tensor]:
    """What the network takes of images, in order; nothing without any."""
    if not patches:
        return {}
    return {
        PATCHES: torch.cat([each.numbers_MC for each in patches]),
        PATCH_PLACES: torch.cat([each.places_M2 for each in patches]),
        GRIDS: torch.tensor([each.grid for each in patches]),
    }


def _count(patches: Patches) -> int:
    return patches.grid[0] * patches.grid[1]


def _content(content: str | Sequence[Mapping[str, str]]) -> str:
    if isinstance(content, str):
        return content
    frame = f"{IMAGE_START}{IMAGE}{IMAGE_END}"
    return "".join(frame if piece["type"] == "image" else piece["text"] for piece in content)
