"""Line mode: the image is one line of text, so no detector runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.kit.models.pixels import to_rgb
from services.ocr.engines.base import Box, rectangle

# Narrower shapes than this are no line of text but a canvas with a line on it.
LINE_ASPECT = 1.5
_INK_LEVELS = 64
_MARGIN = 0.2


def line_strip(image: Image.Image) -> tuple[Image.Image, Box]:
    """The part of `image` that holds its line of text, as RGB, and where that is in the image (pixels).

    An image at least LINE_ASPECT times as wide as high is the line, whole. Anything else would shrink its text below
    what a recogniser can read, so it is cut to its ink first: the pixels that differ from the border's median colour
    by more than 64 of 255 levels in a channel, with a margin of a fifth of their height.
    """
    rgb = to_rgb(image)
    width, height = rgb.size
    box = (0, 0, width, height)
    if width < LINE_ASPECT * height:
        box = _ink_box(np.asarray(rgb)) or box
        rgb = rgb.crop(box)
    return rgb, rectangle(*box)


def _ink_box(pixels: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of the ink with its margin; None for a plain image."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    # In eight bits and without a reduction over the short channel axis: several times as fast.
    level = ground.astype(np.int16)
    lowest, highest = (np.clip(level + sign * _INK_LEVELS, 0, 255).astype(np.uint8) for sign in (-1, 1))
    far = (pixels < lowest) | (pixels > highest)
    ink = far[:, :, 0] | far[:, :, 1] | far[:, :, 2]
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if rows.size == 0:
        return None
    margin = round(_MARGIN * (int(rows[-1]) - int(rows[0]) + 1)) + 1
    height, width = ink.shape
    return (
        max(int(columns[0]) - margin, 0),
        max(int(rows[0]) - margin, 0),
        min(int(columns[-1]) + 1 + margin, width),
        min(int(rows[-1]) + 1 + margin, height),
    )
