"""What is sent to a judge: images as data URLs, encoded once however often they are shown, then the text."""

from __future__ import annotations

import base64
import io
from typing import Literal

from PIL import Image

from services.kit.judge.client import Part
from services.kit.models.pixels import to_rgb

ImageFormat = Literal["jpeg", "png"]
JPEG_QUALITY = 95  # what the published clients of these judges send


def image_part(image: Image.Image, form: ImageFormat) -> Part:
    """An image in its own size as a content part. Blocking: a few milliseconds per megapixel.

    `jpeg` has quality 95, `png` is lossless. Where the image is transparent, white shows.
    """
    buffer = io.BytesIO()
    if form == "png":
        to_rgb(image).save(buffer, "PNG", compress_level=1)
    else:
        to_rgb(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    encoded = base64.b64encode(buffer.getbuffer()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/{form};base64,{encoded}"}}


def text_part(text: str) -> Part:
    return {"type": "text", "text": text}
