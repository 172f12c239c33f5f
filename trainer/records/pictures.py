"""Many small images as one: what a reporter shows, and what the flight recorder keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_GAP = 2  # white pixels between images


def thumbnail(image_HWC: np.ndarray, max_side: int) -> np.ndarray:
    """Every n-th pixel of an image, n the smallest that fits `max_side`; a copy, made in microseconds."""
    stride = max(1, math.ceil(max(image_HWC.shape[:2]) / max_side))
    return image_HWC[::stride, ::stride].copy()


def contact_sheet(images: Sequence[np.ndarray], columns: int = 8) -> np.ndarray:
    """Images (H, W, 3), uint8, of any sizes, side by side in rows of `columns`, on white.

    Raises:
        ValueError: there is no image.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(columns, len(images))
    height = max(image.shape[0] for image in images) + _GAP
    width = max(image.shape[1] for image in images) + _GAP
    sheet = np.full((math.ceil(len(images) / columns) * height, columns * width, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet[:-_GAP, :-_GAP]
