"""What GenEval scores well: one thing that is in the picture, and that the detector can name."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont
from pydantic import JsonValue

from services.kit.samples import RED, Sample

CLOSED = "mask2former"  # the kind of detector whose classes are COCO's
_GENEVAL = ("geneval", "geneval_strict", "geneval_soft", "geneval_soft_plain")


def samples(*, open_vocabulary: bool = False) -> Mapping[str, Sample]:
    """By reward. A detector of COCO's classes knows a stop sign and no circle; one that reads names knows both."""
    name, image = ("circle", _circle()) if open_vocabulary else ("stop sign", _stop_sign())
    row: dict[str, JsonValue] = {"tag": "single_object", "include": [{"class": name, "count": 1}]}
    found = Sample(f"a photo of a {name}", (image,), good=1.0, metadata=row)
    grounded = Sample(f"a photo of a {name}", (image,), metadata={"task_type": "object", "nouns": [name]})
    return {**dict.fromkeys(_GENEVAL, found), "gdino": grounded}


def _circle() -> Image.Image:
    # Beside the middle: a detector of few patches is unsure of what lies where four of them meet.
    image = Image.new("RGB", (256, 256), (150, 150, 150))
    ImageDraw.Draw(image).ellipse((105, 105, 177, 177), fill=RED)
    return image


def _stop_sign() -> Image.Image:
    image = Image.new("RGB", (256, 256), (188, 212, 236))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 206, 256, 256), fill=(120, 150, 100))
    pen.rectangle((122, 150, 134, 240), fill=(110, 110, 110))
    pen.regular_polygon((128, 96, 76), 8, rotation=22, fill="white")
    pen.regular_polygon((128, 96, 70), 8, rotation=22, fill=RED)
    pen.text((128, 96), "STOP", "white", ImageFont.load_default(42), anchor="mm")
    return image
