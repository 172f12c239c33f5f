"""What can be told of images without a model: a reward that is being hacked often shows here first.

Images are uint8 RGB (H, W, 3), sides of at least 3 pixels. Luma is that of ITU-R BT.709, in 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

STATISTICS = ("saturation", "brightness", "contrast", "edge_density", "colour_entropy", "sharpness")
EDGE = 0.1  # least change of luma per pixel that counts as an edge; a hard step from black to white is 0.5
THUMBNAIL = 16  # side of what diversity is measured on: layout and colour, not noise
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32) / 255


def image_statistics(image_HWC: Pixels) -> dict[str, float]:
    """One image's numbers, by the names in STATISTICS.

    saturation: mean of HSV's S, 0 to 1. brightness: mean luma. contrast: standard deviation of luma. edge_density: share
    of inner pixels whose luma gradient (Sobel, per pixel) is above EDGE. colour_entropy: bits of the histogram over
    8 x 8 x 8 colours, 0 to 9. sharpness: variance of the luma's Laplacian.
    """
    red, green, blue = image_HWC[..., 0], image_HWC[..., 1], image_HWC[..., 2]
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    luma: Floats = np.asarray(image_HWC.astype(np.float32) @ _LUMA, np.float32)
    colours = (red >> 5).astype(np.int64) << 6 | (green >> 5).astype(np.int64) << 3 | blue >> 5
    shares = np.bincount(colours.ravel()) / colours.size
    shares = shares[shares > 0]
    return {
        "saturation": float(((high - low) / np.maximum(high, 1).astype(np.float32)).mean()),
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "edge_density": float((_gradient(luma) > EDGE).mean()),
        "colour_entropy": max(0.0, float(-(shares * np.log2(shares)).sum())),
        "sharpness": float(_laplacian(luma).var()),
    }


def thumbnail(image_HWC: Pixels) -> Floats:
    """An image's mean colours over a grid of at most THUMBNAIL x THUMBNAIL cells, flat, in 0 to 1.

    Sides that are no multiple of the grid lose their last rows and columns. Of large images every n-th row and column
    is looked at, so that a cell has 8 to 15 of each: the time does not grow with the image.
    """
    stride = max(1, min(image_HWC.shape[:2]) // (8 * THUMBNAIL))
    image_HWC = image_HWC[::stride, ::stride]
    height, width = image_HWC.shape[:2]
    rows, columns = min(height, THUMBNAIL), min(width, THUMBNAIL)
    tall, wide = height // rows, width // columns
    cells = image_HWC[: rows * tall, : columns * wide].reshape(rows, tall, columns, wide, 3)
    means: Floats = cells.mean((1, 3), dtype=np.float32).ravel() / np.float32(255)
    return means


def diversity(thumbnails: Sequence[Floats]) -> float | None:
    """How much the images of one prompt differ: mean over pairs of the root mean square distance of their
    thumbnails, in 0 to 1. None for fewer than two images.
    """
    if len(thumbnails) < 2:
        return None
    stack = np.stack(thumbnails).astype(np.float64)
    first, second = np.triu_indices(len(stack), 1)
    return float(np.sqrt(((stack[first] - stack[second]) ** 2).mean(1)).mean())


def mean_statistics(each: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Per name the mean and the standard deviation (unbiased; 0 for one image) over those that have it."""
    found: dict[str, list[float]] = {}
    for statistics in each:
        for name, value in statistics.items():
            found.setdefault(name, []).append(value)
    return {name: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else 0.0) for name, v in found.items()}


def _gradient(luma_HW: Floats) -> Floats:
    """Size of the Sobel gradient of the inner pixels, per pixel of distance."""
    across = luma_HW[:, 2:] - luma_HW[:, :-2]
    down = luma_HW[2:] - luma_HW[:-2]
    x = (across[:-2] + 2 * across[1:-1] + across[2:]) / 8
    y = (down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]) / 8
    size: Floats = np.hypot(x, y)
    return size


def _laplacian(luma_HW: Floats) -> Floats:
    inner = luma_HW[1:-1, 1:-1]
    around = luma_HW[:-2, 1:-1] + luma_HW[2:, 1:-1] + luma_HW[1:-1, :-2] + luma_HW[1:-1, 2:]
    difference: Floats = around - 4 * inner
    return difference
