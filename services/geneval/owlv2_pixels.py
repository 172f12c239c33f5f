"""Pixels as OWLv2 sees them: filled up with black to a square, scaled to the model's size, normalised.

transformers' own scaling needs scipy. This is the same computation, as scikit-image publishes it: a Gaussian blur of
(factor - 1) / 2 pixels where the image shrinks, then linear interpolation between the centres of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

_REACH = 4  # standard deviations after which the blur is cut off


def owlv2_pixels(image: Image.Image, side: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """[1, 3, side, side], float32, of an RGB image of any size."""
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[None]
    # One axis after the other, each filled up just before: a long strip never becomes the whole of its square.
    for _ in range(2):
        filled = functional.pad(pixels, (0, max(image.size) - pixels.shape[-1]))
        pixels = _scale_last(filled, side).transpose(2, 3)
    return (pixels - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)


def _scale_last(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """[1, 3, height, width] -> [1, 3, height, size]."""
    width = pixels.shape[-1]
    factor = width / size
    blurred = _blur_last(pixels, (factor - 1) / 2) if factor > 1 else pixels
    # A pixel is looked at where its centre falls among the given ones; beyond the first and last centre the row is mirrored.
    places = (torch.arange(size, dtype=torch.float64) + 0.5) * factor - 0.5
    places = places.abs()
    places = torch.where(places > width - 1, 2 * (width - 1) - places, places).clamp(0, width - 1)
    left = places.floor().long()
    right = (left + 1).clamp(max=width - 1)
    share = (places - left).to(pixels.dtype)
    return blurred[..., left] * (1 - share) + blurred[..., right] * share


def _blur_last(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    width = pixels.shape[-1]
    reach = int(_REACH * sigma + 0.5)
    if reach == 0:
        return pixels
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    # Mirrored about the first and the last pixel, as often as the blur reaches over them.
    period = max(2 * (width - 1), 1)
    mirrored = torch.arange(-reach, width + reach).remainder(period)
    mirrored = torch.where(mirrored >= width, period - mirrored, mirrored)
    rows = pixels[..., mirrored].reshape(-1, 1, width + 2 * reach)
    return functional.conv1d(rows, kernel.reshape(1, 1, -1)).reshape(pixels.shape)
