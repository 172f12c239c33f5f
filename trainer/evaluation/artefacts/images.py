"""Held-out images: PNG files, and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.evaluation.artefacts.image_statistics import Pixels, image_statistics, mean_statistics
from wire.images import read_picture

SUFFIX = ".png"


def path(folder: Path, stem: str) -> Path:
    """The file of a sample's image."""
    return folder / f"{stem}{SUFFIX}"


def save(folder: Path, stem: str, images: Sequence[Pixels]) -> None:
    """Write the image of a sample, if it has one."""
    assert len(images) < 2, "a benchmark's file name has no place for a second image"
    for pixels_HWC in images:
        Image.fromarray(pixels_HWC).save(path(folder, stem), compress_level=1)


def load(folder: Path, stem: str, count: int) -> tuple[Pixels, ...]:
    """The `count` images of a sample, 0 or 1. Raises OSError: missing or damaged."""
    if count == 0:
        return ()
    try:
        return (np.asarray(read_picture(path(folder, stem)).convert("RGB")),)
    except ValueError as error:
        raise OSError(str(error)) from error


def statistics(images: Sequence[Pixels]) -> dict[str, float]:
    """The numbers of a sample's images, the mean over them; none without an image."""
    return {name: mean for name, (mean, _) in mean_statistics([*map(image_statistics, images)]).items()}
