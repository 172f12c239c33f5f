"""Opens the images of a data set as they are drawn: whole ones upright in RGB, broken ones refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from wire.images import read_picture

BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what opening a damaged file may raise


class BrokenPicturesError(RuntimeError):
    """Too many images in a row cannot be read; the message names the last."""


def open_picture(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """The image as uint8 (H, W, 3), scaled to cover `size` (height, width) and cut to it; None keeps its own size.

    Raises:
        One of BROKEN: it cannot be read, or ends early.
    """
    with Image.open(path) as image:
        known = image.format in ("PNG", "JPEG", "MPO", "WEBP")
        # Pillow alone takes a PNG or JPEG whose data ends early for one that is black or grey below.
        upright = (read_picture(path) if known else ImageOps.exif_transpose(image)).convert("RGB")
    if size is not None:
        height, width = size
        upright = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
    return np.array(upright)
