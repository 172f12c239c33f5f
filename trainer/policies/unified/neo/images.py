"""Images as patches in native resolution: scaled so that both sides are whole tokens, normalised, cut. Axes: M patches, C numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# ImageNet's mean and standard deviation of red, green and blue.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MEAN, _STD = np.array(MEAN, np.float32), np.array(STD, np.float32)
WIDEST = 200  # a longer side of more than so many shorter ones is refused


@dataclass(frozen=True, eq=False)
class Patches:
    """An image.

    Attributes:
        numbers_MC: float32; patches of a token behind one another, tokens row by row.
        places_M2: int64, row and column of each patch.
        grid: rows and columns of tokens.
    """

    numbers_MC: Tensor
    places_M2: Tensor
    grid: tuple[int, int]


def pixel_limit(count: int, min_pixels: int, max_pixels: int) -> int:
    """Most pixels of each of `count` images of a row: several share what two may have, but none gets less than the least."""
    return max_pixels if count <= 1 else max(2 * max_pixels // count, min_pixels)


def scaled_size(height: int, width: int, stride: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width, multiples of `stride`, as near to the image's as an area in [min_pixels, max_pixels] lets them.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > WIDEST * min(height, width):
        raise ValueError(
            f"an image of {width} x {height} pixels is more than {WIDEST} times as long as it is wide; cut it, or leave the row out"
        )
    sides = [max(stride, round(side / stride) * stride) for side in (height, width)]
    if sides[0] * sides[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = [max(stride, math.floor(side / shrink / stride) * stride) for side in (height, width)]
    elif sides[0] * sides[1] < min_pixels:
        enlarge = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * enlarge / stride) * stride for side in (height, width)]
    return sides[0], sides[1]


def cut(image: Image.Image, patch: int, merge: int, min_pixels: int, max_pixels: int) -> Patches:
    """The image's patches. Raises ValueError as `scaled_size` does."""
    height, width = scaled_size(image.height, image.width, patch * merge, min_pixels, max_pixels)
    if (image.height, image.width) != (height, width):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = (np.asarray(image.convert("RGB"), dtype=np.float32) / 255 - _MEAN) / _STD
    rows, columns = height // (patch * merge), width // (patch * merge)
    # (rows, patches down, pixels down, columns, patches across, pixels across, channels)
    split = pixels.reshape(rows, merge, patch, columns, merge, patch, 3)
    numbers = np.ascontiguousarray(split.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, 3 * patch * patch)
    return Patches(torch.from_numpy(numbers), _places(rows, columns, merge), (rows, columns))


@lru_cache(maxsize=64)
def _places(rows: int, columns: int, merge: int) -> Tensor:
    """Row and column of each patch of so many rows and columns of tokens, in the order of `Patches`."""
    places = torch.stack(torch.meshgrid(torch.arange(rows * merge), torch.arange(columns * merge), indexing="ij"), -1)
    return places.reshape(rows, merge, columns, merge, 2).transpose(1, 2).reshape(-1, 2).contiguous()
