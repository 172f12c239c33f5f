"""Bytes to Pillow images and back. Sizes are checked from the header, before any pixel is decoded.

`wire.containers` reads what surrounds the pixels; a decoder sees nothing else of a file than its pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from wire.base64_text import base64_length, decode_base64
from wire.containers import (
    Container,
    ContainerError,
    media_type_of,
    other_type_of,
    png_data_is_whole,
    read_container,
)
from wire.schema import ImageRef, MediaType

_FORMATS: dict[str, str] = {"image/png": "PNG", "image/webp": "WEBP", "image/jpeg": "JPEG"}
_MAX_PASSES = 16  # scans of the largest image; smaller ones may have more
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImageError(ValueError):
    """The bytes are not an image we take; the message says why."""


@dataclass(frozen=True)
class ImageLimits:
    """Upper bounds for one image, checked before decoding."""

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 16 * 1024 * 1024


_NO_LIMITS = ImageLimits(max_bytes=1 << 40, max_pixels=Image.MAX_IMAGE_PIXELS or 1 << 27)


@dataclass(frozen=True)
class Picture:
    """An image whose size is known and within the limits, and whose pixels are not decoded yet: `load` does."""

    width: int
    height: int
    depth: int
    decode: Callable[[], Image.Image]
    work: int = 0  # bytes for each pixel that the decoder needs beside

    @property
    def memory(self) -> int:
        """Bytes of the decoded pixels."""
        return self.width * self.height * self.depth

    @property
    def peak(self) -> int:
        """Bytes while they are decoded, and before they are turned upright."""
        return self.width * self.height * (self.depth + self.work)


def encode(image: Image.Image, media_type: MediaType, quality: int = 95) -> bytes:
    """Encode; PNG, WebP (lossless) and raw RGB8 return the same pixels when decoded, JPEG does not.

    `quality` (1-100) is used by JPEG only. Raw RGB8 drops an alpha channel.
    """
    if media_type == "image/x-rgb8":
        return image.convert("RGB").tobytes()
    buffer = io.BytesIO()
    if media_type == "image/png":
        image.save(buffer, "PNG", compress_level=1)
    elif media_type == "image/webp":
        image.save(buffer, "WEBP", lossless=True, exact=True, quality=0, method=0)
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode(
    data: bytes | memoryview,
    media_type: MediaType,
    *,
    width: int | None = None,
    height: int | None = None,
    limits: ImageLimits | None = None,
) -> Image.Image:
    """Decode one image into a loaded Pillow image in the file's own mode, upright (first frame of an animation).

    Raises BadImageError when the bytes exceed the limits, are no such image, are damaged, or end early.
    """
    return load(open_header(data, media_type, width=width, height=height, limits=limits))


def decode_ref(
    ref: ImageRef, parts: Mapping[str, bytes | memoryview], limits: ImageLimits | None = None
) -> Image.Image:
    """Decode an image of a request; `parts` are the multipart parts by name. Raises BadImageError."""
    data = ref_bytes(ref, parts, limits)
    return decode(data, ref.media_type, width=ref.width, height=ref.height, limits=limits)


def open_header(
    data: bytes | memoryview,
    media_type: MediaType,
    *,
    width: int | None = None,
    height: int | None = None,
    limits: ImageLimits | None = None,
) -> Picture:
    """Read the size and check the limits; pixels are decoded by `load`. Raises BadImageError.

    What the first bytes say counts, not `media_type`: files are renamed more often than they are converted. Raw RGB8 has
    no first bytes that say anything.
    """
    limits = limits or ImageLimits()
    if len(data) > limits.max_bytes:
        raise BadImageError(f"image of {len(data)} bytes; the limit is {limits.max_bytes}")
    if media_type == "image/x-rgb8":
        return _open_rgb8(data, width, height, limits)
    found = media_type_of(data)
    if found is None:
        raise _unreadable(media_type, _what_is_wrong(data))
    try:
        container = read_container(bytes(data), found)
    except ContainerError as error:
        raise _unreadable(found, error) from error
    if container.width * container.height > limits.max_pixels:
        raise _too_large(container.width, container.height, limits)
    size = container.width, container.height
    if container.scans * container.width * container.height > _MAX_PASSES * limits.max_pixels:
        raise BadImageError(
            f"JPEG of {container.scans} scans over {container.width}x{container.height} pixels; the limit is "
            f"{_MAX_PASSES} times {limits.max_pixels}"
        )
    return Picture(*size, container.depth, partial(_decode_file, container), _work(container))


def ref_bytes(
    ref: ImageRef, parts: Mapping[str, bytes | memoryview], limits: ImageLimits | None = None
) -> bytes | memoryview:
    """The encoded bytes of an image of a request; `parts` are the multipart parts by name. Raises BadImageError."""
    limits = limits or ImageLimits()
    if ref.part is not None:
        if ref.part not in parts:
            raise BadImageError(f"no multipart part named {ref.part!r}")
        return parts[ref.part]
    if ref.data is None:
        raise BadImageError(f"the image at {ref.url} was not fetched")
    most = limits.max_bytes * 4 // 3 + 4
    if len(ref.data) > most and (length := base64_length(ref.data)) > most:
        raise BadImageError(f"image of {length} base64 characters; the limit is {limits.max_bytes} bytes")
    try:
        return decode_base64(ref.data)
    except ValueError as error:
        raise BadImageError(f"`data` is {error}") from error


def load(picture: Picture) -> Image.Image:
    """Decode the pixels and turn them the way up that Exif's orientation says, but for WebP: browsers show it as it is.

    A damaged Exif block says nothing. Raises BadImageError when the image's data is damaged or ends early.
    """
    return picture.decode()


def read_picture(source: bytes | Path) -> Image.Image:
    """An upright image from a PNG, JPEG or WebP file or its bytes, whatever the file is called.

    A file that is cut off is an error, never an image that is black below. Raises OSError when the file cannot be read
    and BadImageError when it is no such image.
    """
    if isinstance(source, bytes):
        return decode(source, media_type_of(source) or "image/png", limits=_NO_LIMITS)
    try:
        return read_picture(source.read_bytes())
    except BadImageError as error:
        raise BadImageError(f"{source}: {error}") from error


def shared(image: Image.Image) -> Image.Image:
    """Another image of the same pixels, which are copied as soon as someone writes to it."""
    other = image._new(image.im)
    other.readonly = 1
    return other


def to_ref(image: Image.Image, media_type: MediaType, quality: int = 95) -> ImageRef:
    """An image as it travels in a JSON body."""
    return ImageRef(
        media_type=media_type,
        data=base64.b64encode(encode(image, media_type, quality)).decode("ascii"),
        width=image.width,
        height=image.height,
    )


def _open_rgb8(data: bytes | memoryview, width: int | None, height: int | None, limits: ImageLimits) -> Picture:
    if width is None or height is None:
        raise BadImageError("image/x-rgb8 carries no header: give `width` and `height`")
    if width * height > limits.max_pixels:
        raise _too_large(width, height, limits)
    if len(data) != width * height * 3:
        raise BadImageError(f"image/x-rgb8 of {width}x{height} needs {width * height * 3} bytes; got {len(data)}")
    return Picture(width, height, 3, partial(_raw_pixels, (width, height), data))


def _raw_pixels(size: tuple[int, int], data: bytes | memoryview) -> Image.Image:
    image = Image.new("RGB", size, None)  # `Image.frombytes` would paint it black before
    image.frombytes(data)
    return image


def _work(container: Container) -> int:
    """Bytes a pixel that decoding needs beside the pixels themselves."""
    if container.media_type == "image/webp":
        return 12  # two canvases and a copy, four bytes each
    again = 4 * container.depth if container.probe is not None else 0  # coefficients of two bytes, decoded twice
    return again + (container.depth if container.orientation != 1 else 0)


def _decode_file(container: Container) -> Image.Image:
    """The pixels of a PNG, JPEG or WebP file, upright."""
    image = _pixels(container.pixels, container)
    if container.media_type == "image/png":
        is_whole = _png_reaches_its_last_row(image, container) or png_data_is_whole(container.pixels)
    elif container.probe is not None:
        is_whole = _pixels(container.probe, container).tobytes() == image.tobytes()
    else:
        is_whole = True  # the decoder would have raised
    if not is_whole:
        raise _unreadable(container.media_type, "its data ends before its last row")
    turn = _TURNS.get(container.orientation)
    return image if turn is None else image.transpose(turn)


def _pixels(data: bytes, container: Container) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=[_FORMATS[container.media_type]])
        if image.size != (container.width, container.height):
            raise ValueError(f"it has {image.width}x{image.height} pixels, not {container.width}x{container.height}")
        image.load()
    except UnidentifiedImageError as error:  # its own words give an address in memory
        raise _unreadable(container.media_type, "its header is damaged") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged input; all mean one thing here
        raise _unreadable(container.media_type, error) from error
    plain = image._new(image.im)  # without the decoder, which may hold as much memory as the pixels do
    plain.info = {key: value for key, value in plain.info.items() if key == "transparency"}
    if container.exif:
        plain.info["exif"] = container.exif
    return plain


def _png_reaches_its_last_row(image: Image.Image, container: Container) -> bool:
    """Rows come in order, and those that never came are zeros. That is the cheap proof; a last row of zeros is none."""
    last = image.crop((0, image.height - 1, image.width, image.height))
    return not container.interlaced and any(last.tobytes())


def _unreadable(media_type: str, reason: object) -> BadImageError:
    return BadImageError(f"not a readable {media_type}: {str(reason) or type(reason).__name__}")


def _what_is_wrong(data: bytes | memoryview) -> str:
    if not data:
        return "it has no bytes"
    kind = other_type_of(data)
    if kind is not None:
        return f"it begins as {kind} does; PNG, JPEG and WebP are taken"
    return f"its {len(data)} bytes do not begin as an image does"


def _too_large(width: int, height: int, limits: ImageLimits) -> BadImageError:
    return BadImageError(f"image of {width}x{height} = {width * height} pixels; the limit is {limits.max_pixels}")
