"""`color_match`: how much of what was drawn has the colour that was asked for.

Precisely, for one image and a target among eleven colour names (an image of more than a megapixel is first reduced by
the least whole factor that brings it below, averaging blocks of pixels):

1. The background is the median colour of the image's border, one pixel wide, per channel.
2. A pixel's contrast is its Euclidean distance from the background in 8-bit sRGB. Its peak is the largest contrast
   within `r` pixels of it, `r = max(2, short side // 64)`. Ink are the pixels with a contrast of at least 64 and at
   least half their peak; what is fainter is noise, or an edge that is more background than stroke.
3. An anti-aliased pixel is a blend of background and stroke, so a red stroke on white has pink edges. Each ink pixel
   is moved along the line from the background through it until its contrast is its peak, or until it would leave the
   sRGB cube: that undoes the blend.
4. Each ink pixel takes the name of the nearest palette colour in CIELAB (D65, Euclidean distance). The score is the
   share of the ink pixels whose name is the target.

An image without ink scores 0: nothing in it has the colour. The reward suits drawings and words on an even ground; in
a photograph "ink" is everything that differs from the border.
"""

from __future__ import annotations

import math
import re
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import JsonValue

from services.kit.models.pixels import to_rgb
from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode

REVISION = "3"  # raise it whenever the same image may score differently
MAX_PIXELS = 1 << 20  # beyond it the time would grow with the image and the share of a colour would not
MIN_CONTRAST = 64.0
MIN_SHARE_OF_PEAK = 0.5

# A name covers a region of colours, so it has several palette colours: a full one and its usual neighbours.
PALETTE: Final[dict[str, tuple[tuple[int, int, int], ...]]] = {
    "red": ((255, 0, 0), (215, 38, 38), (150, 10, 20)),
    "orange": ((255, 165, 0), (240, 130, 0), (255, 110, 20)),
    "yellow": ((255, 255, 0), (240, 215, 40), (250, 240, 130)),
    "green": ((0, 128, 0), (20, 140, 60), (0, 230, 30), (110, 180, 90), (10, 80, 30)),
    "blue": ((0, 0, 255), (35, 75, 205), (60, 140, 235), (140, 190, 240), (10, 20, 110)),
    "purple": ((128, 0, 128), (130, 40, 160), (100, 40, 180), (175, 110, 215)),
    "pink": ((255, 192, 203), (255, 105, 180), (245, 150, 170)),
    "brown": ((139, 69, 19), (101, 67, 33), (160, 110, 70)),
    "black": ((0, 0, 0), (20, 20, 20), (45, 45, 45)),
    "white": ((255, 255, 255), (235, 235, 235)),
    "gray": ((128, 128, 128), (185, 185, 185), (90, 90, 90)),
}
ALIASES: Final[dict[str, str]] = {
    "grey": "gray",
    "violet": "purple",
    "crimson": "red",
    "scarlet": "red",
    "navy": "blue",
}
NAMES: Final[tuple[str, ...]] = tuple(PALETTE)

# A quoted text is what the image should say, so `the word "RED" in blue` asks for blue. A straight single quote
# counts only at a word's edge: the one in "don't" is an apostrophe. No opening mark occurs inside its own pair, or a
# prompt of opening marks alone would take a scan to its end for each.
_QUOTED = re.compile(r'"[^"]*"|“[^“”]*”|‘[^‘’]*’|「[^「」]*」|『[^『』]*』|«[^«»]*»' + r"|(?<!\w)'[^']*'(?!\w)")
_COLOR_WORD = re.compile(r"\b(" + "|".join([*NAMES, *ALIASES]) + r")\b", re.IGNORECASE)

Array = npt.NDArray[np.float64]


def _linear_rgb() -> Array:
    """Linear light of the 256 sRGB levels (IEC 61966-2-1)."""
    level = np.arange(256) / 255
    linear: Array = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return linear


_LINEAR: Final = _linear_rgb()
# Linear sRGB to CIE XYZ relative to the D65 white, row by row: white becomes (1, 1, 1).
_TO_XYZ: Final = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_TO_RELATIVE_XYZ: Final = (_TO_XYZ / _TO_XYZ.sum(axis=1, keepdims=True)).T
_TO_LAB: Final = np.array([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]]).T


def srgb_to_lab(rgb_N3: npt.NDArray[np.uint8]) -> Array:
    """CIELAB (D65) of 8-bit sRGB colours: L in 0..100, a and b about -110..110. Shape (N, 3) in and out."""
    xyz_N3 = _LINEAR[rgb_N3] @ _TO_RELATIVE_XYZ
    f_N3 = np.where(xyz_N3 > 216 / 24389, np.cbrt(xyz_N3), (24389 / 27 * xyz_N3 + 16) / 116)
    lab_N3: Array = f_N3 @ _TO_LAB
    lab_N3[:, 0] -= 16
    return lab_N3


_PALETTE_LAB: Final = srgb_to_lab(np.array([color for colors in PALETTE.values() for color in colors], dtype=np.uint8))
_PALETTE_NAME: Final = np.array([index for index, colors in enumerate(PALETTE.values()) for _ in colors])
_PALETTE_HALF_NORM: Final = 0.5 * (_PALETTE_LAB**2).sum(axis=1)


def nearest_names(rgb_N3: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """Index into NAMES of the nearest palette colour in CIELAB, shape (N,)."""
    # |x - p|^2 = |x|^2 - 2 (x.p - |p|^2 / 2): the nearest p has the largest bracket.
    bracket_NK = srgb_to_lab(rgb_N3) @ _PALETTE_LAB.T - _PALETTE_HALF_NORM
    names_N: npt.NDArray[np.intp] = _PALETTE_NAME[bracket_NK.argmax(axis=1)]
    return names_N


def color_shares(image: Image.Image) -> tuple[Array, int]:
    """Share of the ink that has each colour of NAMES (all zero without ink), and the number of ink pixels.

    Transparent parts of the image show white.
    """
    _, ink_N3 = find_ink(image)
    if not len(ink_N3):
        return np.zeros(len(NAMES)), 0
    return np.bincount(nearest_names(ink_N3), minlength=len(NAMES)) / len(ink_N3), len(ink_N3)


def find_ink(image: Image.Image) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """Which pixels are ink, and the colours (N, 3) of their strokes, in the order of the pixels (steps 1 to 3 of the module)."""
    rgb = to_rgb(image)
    if rgb.width * rgb.height > MAX_PIXELS:
        rgb = rgb.reduce(math.ceil(math.sqrt(rgb.width * rgb.height / MAX_PIXELS)))
    rgb_HW3 = np.asarray(rgb)
    background_3 = _border_median(rgb_HW3)
    offset_HW3 = rgb_HW3 - background_3
    contrast_HW = np.sqrt(np.einsum("hwc,hwc->hw", offset_HW3, offset_HW3))
    peak_HW = _window_max(contrast_HW, max(2, min(contrast_HW.shape) // 64))
    ink_HW = (contrast_HW >= MIN_CONTRAST) & (contrast_HW >= MIN_SHARE_OF_PEAK * peak_HW)
    if not ink_HW.any():
        return ink_HW, np.zeros((0, 3), np.uint8)
    offset_N3 = offset_HW3[ink_HW]
    stretch_N = np.minimum(peak_HW[ink_HW] / contrast_HW[ink_HW], _stretch_to_gamut(offset_N3, background_3))
    ink_N3: npt.NDArray[np.uint8] = np.rint(background_3 + offset_N3 * stretch_N[:, None]).clip(0, 255).astype(np.uint8)
    return ink_HW, ink_N3


def target_color(item: Item) -> str | Failure:
    """The colour an item asks for: `metadata.color`, else the one colour word of the prompt outside quotes."""
    given = item.metadata.get("color")
    if given is not None:
        word = str(given).strip().lower() if isinstance(given, str) else ""
        name = ALIASES.get(word, word)
        if name in PALETTE:
            return name
        return Failure(ErrorCode.BAD_INPUT, f"metadata.color is {given!r}; known are {', '.join([*NAMES, *ALIASES])}")
    words: list[str] = [word.lower() for word in _COLOR_WORD.findall(_QUOTED.sub(" ", item.prompt))]
    found = sorted({ALIASES.get(word, word) for word in words})
    if len(found) == 1:
        return found[0]
    reason = f"the prompt names {len(found)} colours ({', '.join(found)})" if found else "the prompt names no colour"
    return Failure(ErrorCode.NOT_APPLICABLE, f"{reason} outside quotes; give `metadata.color`")


def color_match(item: Item) -> Result:
    """Share of the ink in the colour asked for, 0 to 1 (see the module). Needs exactly one image."""
    target = target_color(item)
    if isinstance(target, Failure):
        return target
    if len(item.images) != 1:
        return Failure(ErrorCode.BAD_INPUT, f"color_match scores one image; `images` has {len(item.images)}")
    shares, count = color_shares(item.images[0])
    seen: dict[str, JsonValue] = {
        name: round(float(share), 4) for name, share in zip(NAMES, shares, strict=True) if share > 0
    }
    return Score(float(shares[NAMES.index(target)]), details={"target": target, "ink_pixels": count, "shares": seen})


def _border_median(rgb_HW3: npt.NDArray[np.uint8]) -> Array:
    border_N3 = np.concatenate([rgb_HW3[0], rgb_HW3[-1], rgb_HW3[1:-1, 0], rgb_HW3[1:-1, -1]])
    middle_3: Array = np.sort(border_N3, axis=0)[len(border_N3) // 2].astype(np.float64)
    return middle_3


def _window_max(values_HW: Array, radius: int) -> Array:
    """Largest value within `radius` rows and columns, cut off at the image's edge."""
    return _slide_max(_slide_max(values_HW, radius).T, radius).T


def _slide_max(values: Array, radius: int) -> Array:
    """Largest of the rows i - radius .. i + radius, for each row i."""
    pad = np.full((radius, *values.shape[1:]), -np.inf)
    out: Array = np.concatenate([pad, values, pad])
    window = 1  # out[i] is the largest of `window` rows from i on; doubling takes log2(window) passes
    while window < 2 * radius + 1:
        step = min(window, 2 * radius + 1 - window)
        out = np.maximum(out[:-step], out[step:])
        window += step
    return out


def _stretch_to_gamut(offset_N3: Array, background_3: Array) -> Array:
    """How many times each offset from the background fits into the sRGB cube, shape (N,)."""
    room_N3 = np.where(offset_N3 > 0, 255 - background_3, background_3)
    with np.errstate(divide="ignore", invalid="ignore"):
        stretch_N: Array = np.where(offset_N3 == 0, np.inf, room_N3 / np.abs(offset_N3)).min(axis=1)
    return stretch_N
