"""Texts and images of a row, each checked: what cannot be used is said with the row's place, the field and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.base import did_you_mean
from trainer.data.prompts.checks import DataError, check_image, check_text
from trainer.data.sequences import ImageItem, Resize

LONGEST_TEXT = 1 << 20  # characters; a row's tokens have a limit of their own


@dataclass(frozen=True)
class Images:
    """Where the images of a file lie, and how they are scaled.

    Attributes:
        folder: what relative paths count from.
        drawn: scaling of images that are drawn, or read as latents; None is the policy's own.
        seen: scaling of images that are seen.
    """

    folder: Path
    drawn: Resize | None = None
    seen: Resize | None = None

    def path(self, where: str, name: Any) -> str:
        """The path of an image that is there. Raises DataError."""
        return check_image(
            where, name, (self.folder,), rule="relative paths count from `image_folder`", setting="`image_folder`"
        )

    def target(self, path: str) -> ImageItem:
        """It is drawn."""
        return ImageItem(path, "drawn", resize=self.drawn)

    def condition(self, path: str) -> tuple[ImageItem, ImageItem]:
        """It is read as latents, then seen; each may be left out by chance."""
        return (
            ImageItem(path, "clean", droppable=True, resize=self.drawn),
            ImageItem(path, "seen", droppable=True, resize=self.seen),
        )


def text_field(where: str, row: Mapping[str, Any], name: str) -> str:
    """A text that the row must have. Raises DataError."""
    return check_text(f"{where}: {name}", _present(where, row, name), LONGEST_TEXT)


def optional_text(where: str, row: Mapping[str, Any], name: str) -> str:
    """A text that the row may have; the empty text where it has none. Raises DataError: it is no text."""
    value = row.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return check_text(f"{where}: {name}", value, LONGEST_TEXT)


def image_field(where: str, row: Mapping[str, Any], name: str, images: Images) -> str:
    """The path of the one image that a field names, alone or in a list of one. Raises DataError."""
    paths = image_fields(where, row, name, images)
    if len(paths) > 1:
        raise DataError(f"{where}: {name}: {len(paths)} images, where one is drawn; keep one of them")
    return paths[0]


def image_fields(where: str, row: Mapping[str, Any], name: str, images: Images) -> tuple[str, ...]:
    """The paths of the images that a field names, one or a list of them. Raises DataError."""
    value = _present(where, row, name)
    if not isinstance(value, list):
        return (images.path(f"{where}: {name}", value),)
    if not value:
        raise DataError(f"{where}: {name}: the list is empty; name an image or leave the row out")
    return tuple(images.path(f"{where}: {name}[{i}]", each) for i, each in enumerate(value))


def _present(where: str, row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None:
        others = [str(each) for each in row if each != name]
        what = "null" if name in row else f"missing{did_you_mean(name, others)}"
        raise DataError(
            f"{where}: {name}: {what}; the row's other fields are {shown_names(', '.join(others) or 'none')}"
        )
    return value


def shown_names(names: str) -> str:
    """Names as a message lists them: cut when there are many."""
    return names if len(names) <= 200 else f"{names[:197]}..."
