"""JPEG size as a reward, the two toy tasks of DDPO (arXiv 2305.13301, section 5.1).

A kilobyte is 1000 bytes. The size is that of the whole file at quality 95 with Pillow's defaults (4:2:0 chroma,
baseline), headers included, so it also grows with the image's width and height.
"""

from __future__ import annotations

import io
from typing import Final

from PIL import features

from services.kit.models.pixels import to_rgb
from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode

QUALITY: Final = 95
# Encoders differ by a few bytes, so the encoder is part of what a score means.
REVISION: Final = f"2+libjpeg-{features.version_feature('libjpeg_turbo') or features.version_codec('jpg')}"


def jpeg_compressibility(item: Item) -> Result:
    """Minus the kilobytes of the image as JPEG: below 0, higher when smaller. Needs exactly one image."""
    return _scored(item, sign=-1.0)


def jpeg_incompressibility(item: Item) -> Result:
    """The kilobytes of the image as JPEG: above 0, higher when larger. Needs exactly one image."""
    return _scored(item, sign=1.0)


def _scored(item: Item, sign: float) -> Result:
    if len(item.images) != 1:
        return Failure(ErrorCode.BAD_INPUT, f"JPEG size is of one image; `images` has {len(item.images)}")
    buffer = io.BytesIO()
    to_rgb(item.images[0]).save(buffer, "JPEG", quality=QUALITY)
    size = buffer.tell()
    return Score(sign * size / 1000, details={"bytes": size})
