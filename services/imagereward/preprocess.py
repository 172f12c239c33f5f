"""Pixels as ImageReward sees them: the short side scaled to the model's size, the middle cut out, normalised."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from services.kit.models.pixels import to_rgb

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# Of an image longer than this many times its short side only the middle is scaled: all of it, scaled up, could fill the
# memory and would be cut off again.
_LONGEST = 8


def preprocess(image: Image.Image, size: int) -> torch.Tensor:
    """[3, size, size], float32. Any mode and aspect ratio.

    Pillow's bicubic and the rounding of torchvision's Resize and CenterCrop, which the published code uses.
    """
    shown = _middle(to_rgb(image))
    short = min(shown.size)
    width, height = (size if side == short else int(size * side / short) for side in shown.size)
    scaled = shown.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.asarray(scaled.crop((left, top, left + size, top + size)), np.float32) / 255
    normalised = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(normalised).permute(2, 0, 1)


def _middle(image: Image.Image) -> Image.Image:
    kept = _LONGEST * min(image.size)
    if max(image.size) <= kept:
        return image
    width, height = (min(side, kept) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
