"""Turns any decoded image into RGB, in the one way that all scorers share."""

from __future__ import annotations

from PIL import Image

_LONGEST_RATIO = 200  # of an image's sides


def check_ratio(image: Image.Image) -> None:
    """For networks that keep an image's shape, where a strip would be scaled to less than a pixel.

    Raises ValueError, a sentence, for an image that is more than 200 times as long as wide.
    """
    if max(image.size) > _LONGEST_RATIO * min(image.size):
        width, height = image.size
        raise ValueError(f"the image is {width}x{height}: one side may be at most {_LONGEST_RATIO} times the other")


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, 8 bits a channel, of an image in any mode that PNG, JPEG or WebP can have; RGB itself is not copied.

    Transparent pixels become white, as on a white page; `convert` alone would show the colours hidden under them.
    16-bit greys keep their high byte; Pillow would clip them at 255.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        return image.convert("I").point(_high_bytes(image.info.get("transparency")), "L").convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _high_bytes(transparent: int | None) -> list[int]:
    """The 8-bit grey of each 16-bit one. `transparent` is the grey that a PNG declares to be so."""
    greys = [value >> 8 for value in range(1 << 16)]
    if transparent is not None:
        greys[transparent] = 255
    return greys
