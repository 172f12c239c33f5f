"""Which images a folder holds, and what is in them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from wire.images import read_picture

_NAME = re.compile(r"(\d+)[_.](\d+)\.(?:png|jpe?g|webp)", re.IGNORECASE)


class ImageFolderError(ValueError):
    """The folder cannot be used; the message says why."""


@dataclass(frozen=True)
class ImageFile:
    """Picture number `image` of prompt `index`."""

    index: int
    image: int
    path: Path


def find_images(folder: Path) -> tuple[list[ImageFile], list[str]]:
    """The images named `<index>_<image>` or `<index>.<image>` with .png, .jpg, .jpeg or .webp, in order of their
    numbers; and the names of other files. Raises ImageFolderError when there is none, or two have the same numbers.
    """
    found: dict[tuple[int, int], ImageFile] = {}
    others = []
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise ImageFolderError(f"the image folder {folder} cannot be read: {error.strerror or error}") from error
    for path in paths:
        name = _NAME.fullmatch(path.name)
        if name is None:
            others.append(path.name)
            continue
        image = ImageFile(int(name[1]), int(name[2]), path)
        twin = found.setdefault((image.index, image.image), image)
        if twin is not image:
            raise ImageFolderError(
                f"{twin.path.name} and {path.name} in {folder} are both image {image.image} of prompt "
                f"{image.index}: remove one"
            )
    if not found:
        raise ImageFolderError(f"{folder} holds no image named like 0_0.png (prompt 0, image 0) or 0.0.png")
    return [found[place] for place in sorted(found)], others


def hash_file(path: Path) -> str:
    """sha256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_image(data: bytes) -> Image.Image:
    """Decode a PNG, JPEG or WebP image, upright as a service sees it. Raises ValueError when it is none or damaged."""
    return read_picture(data)
