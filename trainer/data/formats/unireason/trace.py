"""The trace of a refinement: what is to change, and the images that came of it, one after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainer.data.formats.fields import Images, image_field, text_field
from trainer.data.prompts.checks import DataError, shown

FIELD = "Text Reasoning Trace"
_REFERENCE = re.compile(r"<image_start>\[([^\]]+)\]<image_end>")
_THOUGHT = re.compile(r"THOUGHT\s*\d+:\s*")
_BRACKET = re.compile(r"<image_(?:start|end)>", re.IGNORECASE)


def read_trace(where: str, row: Mapping[str, Any], images: Images) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of a trace and the paths of its images: one text more than images, as each image stands between two.

    An image is written <image_start>[KEY]<image_end>, where KEY is the field of the row that holds its path. The headings
    "THOUGHT 1:" are left out.

    Raises:
        DataError: no trace, a reference to no field or to no image, or half a reference.
    """
    text = text_field(where, row, FIELD)
    texts, keys = _REFERENCE.split(text)[::2], _REFERENCE.findall(text)
    for part in texts:
        if broken := _BRACKET.search(part):
            raise DataError(
                f"{where}: {FIELD}: {broken[0]} in {shown(part)} belongs to no image; write <image_start>[KEY]<image_end>, where "
                "KEY is the field with the path"
            )
    named = [key for key in keys if key not in row]
    if named:
        raise DataError(
            f"{where}: {FIELD}: the image [{named[0]}] is no field of the row; add the field {named[0]} with its path"
        )
    return tuple(_THOUGHT.sub("", part).strip() for part in texts), tuple(
        image_field(where, row, key, images) for key in keys
    )
