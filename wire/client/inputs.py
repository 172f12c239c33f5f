"""What a caller gives, as items: images of any kind become files as they are sent, one value is given to every item."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from PIL import Image
from pydantic import JsonValue

from wire.containers import media_type_of, other_type_of
from wire.images import BadImageError, encode
from wire.schema import MediaType

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels: TypeAlias = npt.NDArray[np.uint8]
else:
    Pixels = Any

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | Pixels"
ItemImages: TypeAlias = "ImageLike | Sequence[ImageLike]"
T = TypeVar("T")

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@dataclass(frozen=True, eq=False)
class Part:
    """One image as it is sent: a file's bytes and what they are."""

    media_type: MediaType
    data: bytes


@dataclass(frozen=True)
class Wanted:
    """One item as the caller gave it. Its images are read when its request is made, so that not all are in memory."""

    index: int
    prompt: str
    images: tuple[ImageLike, ...]
    sources: tuple[ImageLike, ...]
    completion: str | None
    targets: tuple[str, ...] | None
    group_id: str | None
    metadata: Mapping[str, JsonValue]


def make_items(
    images: Sequence[ItemImages] | ImageLike | None,
    prompts: Sequence[str] | str,
    *,
    completions: Sequence[str | None] | str | None = None,
    source_images: Sequence[ItemImages] | ImageLike | None = None,
    targets: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
    groups: Sequence[str | int | None] | str | int | None = None,
    metadata: Mapping[str, JsonValue] | Sequence[Mapping[str, JsonValue]] | None = None,
) -> list[Wanted]:
    """The items of one call: as many as there are images, else completions, else prompts.

    A single value is every item's. Raises ValueError when two lists differ in length, with both numbers, and when there is
    nothing to score; TypeError for what is no image.
    """
    pictured = None if images is None else _images_of_items(images, "images")
    lists = {"images": pictured, "completions": completions, "prompts": prompts}
    named = next(
        ((name, given) for name, given in lists.items() if given is not None and not isinstance(given, str)), None
    )
    name, count = ("prompts", 1) if named is None else (named[0], len(named[1]))

    def each(field: str, given: Sequence[T] | None, default: T) -> Sequence[T]:
        if given is None:
            return [default] * count
        if len(given) != count:
            raise ValueError(
                f"{field} has {len(given)} entries and {name} has {count}: give one for each item, or one for all"
            )
        return given

    if pictured is None and completions is None:
        raise ValueError("there is nothing to score: give images, or completions for a reward of texts")
    sources = None
    if source_images is not None:
        alone = _is_image(source_images)
        sources = [(source_images,)] * count if alone else _images_of_items(source_images, "source_images")
    columns = zip(
        each("images", pictured, ()),
        each("prompts", [prompts] * count if isinstance(prompts, str) else prompts, ""),
        each("source_images", sources, ()),
        each("completions", [completions] * count if isinstance(completions, str) else completions, None),
        each("targets", _targets(targets, count), None),
        each("groups", [groups] * count if isinstance(groups, str | int) else groups, None),
        each("metadata", [metadata] * count if isinstance(metadata, Mapping) else metadata, {}),
        strict=True,
    )
    return [
        Wanted(
            index, prompt, tuple(shown), tuple(source), completion, wanted, None if group is None else str(group), more
        )
        for index, (shown, prompt, source, completion, wanted, group, more) in enumerate(columns)
    ]


def read_part(image: ImageLike) -> Part:
    """An image as it is sent: a file as it is, pixels as PNG. Raises BadImageError when a file cannot be sent."""
    if isinstance(image, bytes):
        return _of_file(image, "the bytes that were given")
    if isinstance(image, str | os.PathLike):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise BadImageError(f"{os.fspath(image)} cannot be read: {error.strerror or error}") from error
        return _of_file(data, os.fspath(image))
    pixels = image if isinstance(image, Image.Image) else _of_array(image)
    return Part("image/png", encode(pixels if pixels.mode in _PNG_MODES else pixels.convert("RGB"), "image/png"))


def _of_file(data: bytes, name: str) -> Part:
    media_type = media_type_of(data)
    if media_type is None:
        kind = other_type_of(data) or "no image"
        raise BadImageError(f"{name}: {kind}; PNG, JPEG and WebP are sent as they are, others open with Pillow first")
    return Part(media_type, data)


def _of_array(pixels: Pixels) -> Image.Image:
    """Pixels (H, W), (H, W, 3) or (H, W, 4) of 0 to 255. Raises TypeError with the remedy for any other array."""
    shape, kind = tuple(pixels.shape), str(pixels.dtype)
    if kind != "uint8":
        raise TypeError(f"an array of {kind}: pixels are uint8, such as (255 * x).round().clip(0, 255).astype('uint8')")
    if len(shape) == 3 and shape[2] not in (3, 4) and shape[0] in (1, 3, 4):
        raise TypeError(f"an array of shape {shape}: channels come last, such as x.transpose(1, 2, 0)")
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))):
        raise TypeError(f"an array of shape {shape}: an image is (height, width) or (height, width, 3 or 4)")
    return Image.fromarray(pixels)


def _is_array(value: object) -> bool:
    # By what it has, not by its class: numpy need not be imported for callers that have none.
    return hasattr(value, "__array_interface__") and hasattr(value, "ndim") and hasattr(value, "dtype")


def _is_image(value: object) -> bool:
    return isinstance(value, str | os.PathLike | bytes | Image.Image) or (_is_array(value) and value.ndim < 4)  # type: ignore[attr-defined]


def _images_of_items(given: Any, field: str) -> list[tuple[ImageLike, ...]]:
    """The images of each item. One image is one item's; an array (N, H, W, 3) is one image for each of N items."""
    entries = [given] if _is_image(given) else list(given)
    found: list[tuple[ImageLike, ...]] = []
    for place, entry in enumerate(entries):
        some = (entry,) if _is_image(entry) else tuple(entry) if isinstance(entry, list | tuple) else None
        if some is None or not all(_is_image(image) for image in some):
            raise TypeError(
                f"{field}[{place}] is a {type(entry).__name__}: give a path, the bytes of a file, a Pillow image, an array, or a "
                f"list of these for an item of several images"
            )
        found.append(some)
    return found


def _targets(targets: Any, count: int) -> list[tuple[str, ...] | None] | None:
    """Of each item. A list of texts is every item's; a list of lists has one for each."""
    if targets is None:
        return None
    if isinstance(targets, str):
        raise TypeError(f"targets is the text {targets!r:.40}: give a list of texts")
    if all(isinstance(each, str) for each in targets):
        return [tuple(targets)] * count
    return [None if each is None else tuple(each) for each in targets]
