"""Which of ten colours an object has: a CLIP looks at the object alone, cut out, on grey."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch.nn import functional

from services.geneval.detector import Found
from services.geneval.specification import COLORS
from services.kit.models.backbone import Backbone
from services.kit.models.pixels import to_rgb

_GREY = "#999999"
# Three sentences a colour, as in GenEval's evaluation; the last does not name the object.
_SENTENCES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


class ColorClassifier:
    """Zero-shot colours by the mean of the sentences' unit vectors."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def classify(self, image: Image.Image, name: str, found: Sequence[Found]) -> list[str]:
        """The colour of each object of the class `name`. Without a mask, what else is in its box is looked at, too."""
        if not found:
            return []
        shown = to_rgb(image)
        crops_NE = self._backbone.images([_cut_out(shown, each) for each in found])
        best_N = (crops_NE @ self._colors(name).T).argmax(-1)
        return [COLORS[int(index)] for index in best_N]

    def _colors(self, name: str) -> torch.Tensor:
        """[colours, E], unit vectors; remembered by the backbone, sentence by sentence."""
        sentences = [each.format(color=color, name=name) for color in COLORS for each in _SENTENCES]
        rows = self._backbone.prompts(sentences).features_NE
        return functional.normalize(rows.reshape(len(COLORS), len(_SENTENCES), -1).mean(1), dim=-1)


def _cut_out(image: Image.Image, found: Found) -> Image.Image:
    if found.mask is not None:
        image = Image.composite(image, Image.new("RGB", image.size, _GREY), Image.fromarray(found.mask))
    x1, y1, x2, y2 = found.box[:4]
    left, top = max(round(x1), 0), max(round(y1), 0)  # as Pillow rounds where a crop begins and ends
    # At least one pixel, however small or far outside the box is.
    left, top = min(left, image.width - 1), min(top, image.height - 1)
    return image.crop(
        (left, top, max(min(round(x2), image.width), left + 1), max(min(round(y2), image.height), top + 1))
    )
