"""Texts and images as nanoVLM's networks take them, behind the calls that transformers' processors have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trainer.config import ConfigError
from trainer.config.nanovlm import NanoVlmConfig
from trainer.policies.tokens.nanovlm.images import image_text, read_tiles


class NanoVlmProcessor:
    """Stands where `AutoProcessor` gives another family's processor.

    Attributes:
        settings: the model's configuration.
        tokenizer: transformers' tokenizer with nanoVLM's extra tokens.
    """

    def __init__(self, settings: NanoVlmConfig, tokenizer: Any) -> None:
        self.settings, self.tokenizer = settings, tokenizer
        self._image: str = settings.vlm_extra_tokens["image_token"]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, prompt and answer together."""
        return self.settings.lm_max_position_embeddings

    @property
    def image_token_id(self) -> int:
        """The id that stands for an image token."""
        return int(self.tokenizer.convert_tokens_to_ids(self._image))

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False, tokenize: bool = False
    ) -> str:
        """The conversation as a text with one image token for each image, which a call replaces by the image's own text.

        An image token that a text itself has is left out, as nanoVLM does: it would ask for an image that is not there.
        """
        assert not tokenize, "an image's tokens are known when it is read"
        written = [{"role": each["role"], "content": self._content(each["content"])} for each in messages]
        text: str = self.tokenizer.apply_chat_template(
            written, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        return text

    def __call__(
        self, *, text: Sequence[str], images: Sequence[Sequence[Image.Image]] = ((),), return_tensors: str = "pt"
    ) -> dict[str, Tensor]:
        """One text and its images.

        Returns:
            input_ids and attention_mask (1, T); with images also pixel_values (1, tiles, 3, side, side), values 0 to 1.

        Raises:
            ValueError: an image has more tiles than there are tags, images and image tokens are not as many, or the text is
                longer than the model's positions.
        """
        (written,), (given,) = text, images
        read = [read_tiles(image, self.settings) for image in given]
        pieces = written.split(self._image)
        if len(pieces) - 1 != len(read):
            raise ValueError(f"a text has {len(pieces) - 1} image tokens and {len(read)} images; they must be as many")
        filled, several = pieces[0], len(read) > 1
        for number, ((_, grid), piece) in enumerate(zip(read, pieces[1:], strict=True)):
            filled += image_text(grid, self.settings, number if several else None) + piece
        ids = torch.tensor([self.tokenizer(filled, add_special_tokens=False)["input_ids"]], dtype=torch.int64)
        if ids.shape[1] > self.longest:
            raise ValueError(
                f"a text has {ids.shape[1]} tokens with its images, and lm_max_position_embeddings = {self.longest}, beyond which "
                "nanoVLM stretches its positions; give shorter texts or smaller images"
            )
        made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return made | ({"pixel_values": torch.cat([tiles for tiles, _ in read])[None]} if read else {})

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer. The rest is in the model's configuration."""
        self.tokenizer.save_pretrained(folder)

    def _content(self, content: str | Sequence[Mapping[str, str]]) -> str:
        if isinstance(content, str):
            return content.replace(self._image, "")
        return "".join(
            self._image if piece["type"] == "image" else piece["text"].replace(self._image, "") for piece in content
        )


def load_tokenizer(folder: Path, settings: NanoVlmConfig) -> Any:
    """The tokenizer of a folder with nanoVLM's extra tokens and chat template; it pads with the token that ends a text.

    Raises:
        ConfigError: there is none in the folder, or it has more tokens than the model has rows.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder),
            extra_special_tokens=dict(settings.vlm_extra_tokens),
            chat_template=settings.lm_chat_template,
            local_files_only=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{folder} has no tokenizer that transformers can read: {error}") from error
    if len(tokenizer) > settings.lm_vocab_size:
        raise ConfigError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens with the {len(settings.vlm_extra_tokens)} of "
            f"vlm_extra_tokens, but lm_vocab_size = {settings.lm_vocab_size}; give the model's own tokenizer"
        )
    if tokenizer.eos_token is None:
        raise ConfigError(f"the tokenizer in {folder} names no eos_token, which ends an answer; add it")
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
