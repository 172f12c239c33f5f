"""`side_by_side`: whether an image shows, side by side, the two things that were asked for.

For drawings of two plain things on an even ground, each in a half of its own. `metadata.left` and `metadata.right` name them, each
as a colour and a shape: `red disc`. Precisely, in each half:

1. The thing is the half's ink, as `color_match` finds it (services/rules/color.py).
2. Its colour is the palette's name that more than half of the ink has; where none does, it has none.
3. Its shape is that silhouette among SHAPES, drawn as large as the ink's box and around the middle of it, which has the
   greatest intersection over union with the ink. If the greatest is below MIN_OVERLAP, what is there is none of them.
4. Colour and shape count a quarter each. A half whose ink is no shape counts nothing, also not for its colour: a stain in the
   right colour is not a thing.

The score is 0 to 1 in steps of a quarter, for every image has a score: one without ink shows none of the things, which is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from services.kit.scorer import Failure, Item, Result, Score
from services.rules.color import ALIASES, NAMES, PALETTE, find_ink, nearest_names
from wire.schema import ErrorCode

REVISION: Final = "1"
MIN_OVERLAP: Final = 0.6  # of ink and silhouette; two different silhouettes have at most .79
SIDES: Final = ("left", "right")

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Which points of a box a shape covers, by their distance across and down from the box's middle; 1 is the longer side's edge.
SHAPES: Final[Mapping[str, Callable[[Array, Array], Mask]]] = {
    "square": lambda across, down: np.maximum(across, down) <= 1,
    "disc": lambda across, down: across**2 + down**2 <= 1,
    "ring": lambda across, down: (across**2 + down**2 <= 1) & (across**2 + down**2 >= 0.25),
    "cross": lambda across, down: (np.minimum(across, down) <= 1 / 3) & (np.maximum(across, down) <= 1),
    "bar": lambda across, down: (across <= 1 / 3) & (down <= 1),  # upright
    "plank": lambda across, down: (down <= 1 / 3) & (across <= 1),  # lying
}


def side_by_side(item: Item) -> Result:
    """A quarter for each colour and each shape that is there on its side (see the module). Needs exactly one image."""
    wanted = {}
    for side in SIDES:
        thing = _wanted(item, side)
        if isinstance(thing, Failure):
            return thing
        wanted[side] = thing
    if len(item.images) != 1:
        return Failure(ErrorCode.BAD_INPUT, f"side_by_side scores one image; `images` has {len(item.images)}")
    image = item.images[0]
    if image.width < 2:
        return Failure(ErrorCode.BAD_INPUT, "side_by_side needs an image of two halves, and this one is a pixel wide")
    middle = image.width // 2
    boxes = {"left": (0, 0, middle, image.height), "right": (middle, 0, image.width, image.height)}
    components: dict[str, float] = {}
    seen: dict[str, str] = {}
    for side, (color, shape) in wanted.items():
        found_color, found_shape = look(image.crop(boxes[side]))
        seen[side] = f"{found_color or 'no color'} {found_shape or 'no shape'}"
        is_thing = found_shape is not None
        components[f"{side}_color"] = float(is_thing and found_color == color)
        components[f"{side}_shape"] = float(found_shape == shape)
    return Score(sum(components.values()) / len(components), components, details={"seen": dict(seen)})


def look(image: Image.Image) -> tuple[str | None, str | None]:
    """The colour and the shape of the one thing in an image, each None where it has none."""
    ink_HW, ink_N3 = find_ink(image)
    if not len(ink_N3):
        return None, None
    counts = np.bincount(nearest_names(ink_N3), minlength=len(NAMES))
    most = int(counts.argmax())
    color = NAMES[most] if 2 * counts[most] > len(ink_N3) else None
    overlaps = {shape: _overlap(ink_HW, covers) for shape, covers in SHAPES.items()}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return color, best if overlaps[best] >= MIN_OVERLAP else None


def _overlap(ink_HW: Mask, covers: Callable[[Array, Array], Mask]) -> float:
    """Intersection over union of the ink and a silhouette that is as large as it and around its middle."""
    (top, bottom), (left, right) = _ends(ink_HW, axis=0), _ends(ink_HW, axis=1)
    radius = max(bottom - top, right - left) / 2
    # Distances of the middles of pixels from the middle of the box, in halves of its longer side.
    across_W = np.abs(np.arange(ink_HW.shape[1]) + 0.5 - (left + right) / 2) / radius
    down_H = np.abs(np.arange(ink_HW.shape[0]) + 0.5 - (top + bottom) / 2) / radius
    shape_HW = covers(across_W[None, :], down_H[:, None])
    return float((ink_HW & shape_HW).sum() / (ink_HW | shape_HW).sum())


def _ends(ink_HW: Mask, axis: int) -> tuple[int, int]:
    """The first place with ink along an axis, and the one behind the last."""
    places = np.unique(np.nonzero(ink_HW)[axis])
    return int(places[0]), int(places[-1]) + 1


def _wanted(item: Item, side: str) -> tuple[str, str] | Failure:
    """The colour and the shape that `metadata` asks for on a side."""
    given = item.metadata.get(side)
    if given is None:
        return Failure(
            ErrorCode.NOT_APPLICABLE, f"the item has no metadata.{side}, so no thing is asked for; such as 'red disc'"
        )
    words = str(given).lower().split() if isinstance(given, str) else []
    if len(words) == 2:
        color, shape = ALIASES.get(words[0], words[0]), words[1]
        if color in PALETTE and shape in SHAPES:
            return color, shape
    return Failure(
        ErrorCode.BAD_INPUT,
        f"metadata.{side} is {given!r:.80}, not a colour ({', '.join(NAMES)}) and a shape ({', '.join(SHAPES)})",
    )
