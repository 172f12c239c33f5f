"""Images as BAGEL scales them: both sides multiples of a stride, between a shortest and a longest side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.data.sequences import Resize
from wire import images

_MOST_PIXELS = 14 * 14 * 9 * 1024


def fitted(width: int, height: int, resize: Resize, among: int = 1) -> tuple[int, int]:
    """(width, height) that an image of this size is scaled to, little distorted. `longest` beats `shortest`.

    Args:
        among: images of a conversation, which share the most pixels evenly, as BAGEL's rows of questions.
    """
    scale = max(min(resize.longest / max(width, height), 1.0), resize.shortest / min(width, height))
    size = _scaled(width, height, scale, resize.stride)
    most = _MOST_PIXELS / among
    if size[0] * size[1] > most:
        # As published, without a root: an image above the limit ends well below it.
        size = _scaled(*size, most / (size[0] * size[1]), resize.stride)
    if max(size) > resize.longest:
        size = _scaled(*size, resize.longest / max(size), resize.stride)
    return size


def read_rgb(path: str) -> Image.Image:
    """The image; what is transparent is white. Raises OSError and ValueError where it is none."""
    picture = images.read_picture(Path(path))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        above = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return picture.convert("RGB")


def scaled(rgb: Image.Image, resize: Resize, among: int = 1) -> Tensor:
    """An image, `fitted`: (H, W, 3), uint8."""
    size = fitted(*rgb.size, resize, among)
    if size != rgb.size:
        rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(rgb))


def _scaled(width: int, height: int, scale: float, stride: int) -> tuple[int, int]:
    across, down = (max(stride, round(round(side * scale) / stride) * stride) for side in (width, height))
    return across, down
