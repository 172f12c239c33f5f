"""What the model reads for one item: a chat turn of images and text as token ids, and the images as patches.

Written for the Qwen-VL family, whose processors of transformers need torchvision; its parts do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from services.kit.models.pixels import check_ratio, to_rgb
from services.kit.models.sources import SourceError


@dataclass(frozen=True)
class Inputs:
    """ids, kinds: [L], kinds is 1 at image tokens. pixels: [patches, features]. grids: [images, 3]."""

    ids: torch.Tensor
    kinds: torch.Tensor
    pixels: torch.Tensor
    grids: torch.Tensor


class InputMaker:
    """Tokenizer, chat template and image settings of a model's folder."""

    def __init__(self, folder: Path, config: Any, added_token: str | None) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        load_processor: Any = AutoImageProcessor.from_pretrained  # not typed
        try:
            load_tokenizer: Any = AutoTokenizer.from_pretrained
            self._tokenizer: Any = load_tokenizer(folder, local_files_only=True)
            self._processor = load_processor(folder, local_files_only=True, backend="pil")
        except (OSError, ValueError, LookupError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise SourceError(f"--backbone {folder}: tokenizer or image settings cannot be read ({reason})") from error
        if self._tokenizer.chat_template is None:
            raise SourceError(f"--backbone {folder}: the tokenizer has no chat template; download the folder whole")
        if added_token is not None:
            self._tokenizer.add_special_tokens({"additional_special_tokens": [added_token]})
        tokenizer: Any = self._tokenizer
        self.added_id = None if added_token is None else int(tokenizer.convert_tokens_to_ids(added_token))
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self._image_id = int(config.image_token_id)
        self._image_token = str(self._tokenizer.convert_ids_to_tokens(self._image_id))
        self._merge = int(self._processor.merge_size)
        self._multiple = int(self._processor.patch_size) * self._merge

    def make(self, images: Sequence[Image.Image], text: str, pixels: int) -> Inputs:
        """One user turn: the images in order, then the text, then the beginning of the answer.

        Raises ValueError for an image that is 200 times as long as wide.
        """
        scaled = [resize(to_rgb(image), self._multiple, pixels) for image in images]
        given = self._processor(images=scaled, do_resize=False, return_tensors="pt")
        content: list[Mapping[str, str]] = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        turn = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = self._tokenizer(self._spread(turn, given["image_grid_thw"]), return_tensors="pt")["input_ids"][0]
        return Inputs(ids, (ids == self._image_id).int(), given["pixel_values"], given["image_grid_thw"])

    def _spread(self, turn: str, grids: torch.Tensor) -> str:
        """Each image's one token as many times as the image has merged patches."""
        pieces = turn.split(self._image_token)
        # A prompt that itself holds the image's token would shift all images after it.
        if len(pieces) != len(grids) + 1:
            raise ValueError(f"the text holds the image's own token {self._image_token}: take it out of the prompt")
        counts = [int(grid.prod()) // self._merge**2 for grid in grids]
        return pieces[0] + "".join(
            self._image_token * count + piece for count, piece in zip(counts, pieces[1:], strict=True)
        )


def resize(image: Image.Image, multiple: int, pixels: int) -> Image.Image:
    """Scaled to about `pixels` with both sides multiples of `multiple`, as Qwen-VL's own tools do for min = max = pixels.

    Raises ValueError for an image that is 200 times as long as wide.
    """
    check_ratio(image)
    width, height = image.size
    rounded = [max(multiple, round(side / multiple) * multiple) for side in (width, height)]
    area = rounded[0] * rounded[1]
    if area != pixels:  # above it sides are rounded down, below it up, as published
        rounding = math.floor if area > pixels else math.ceil
        scale = math.sqrt(pixels / (width * height))
        rounded = [max(multiple, rounding(side * scale / multiple) * multiple) for side in (width, height)]
    return image.resize((rounded[0], rounded[1]), Image.Resampling.BICUBIC)
