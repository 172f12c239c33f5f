"""Bytes to Pillow images and back. Sizes are checked from the header, before any pixel is decoded."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from wire.base64_text import base64_length, decode_base64
from wire.schema import ImageRef, MediaType

_FORMATS: dict[str, str] = {"image/png": "PNG", "image/webp": "WEBP", "image/jpeg": "JPEG"}
# Each scan of a progressive JPEG is a pass over all pixels, in as little as 20 bytes. Encoders write about ten; the
# marker can only be in another place inside an embedded preview.
MAX_JPEG_SCANS = 64
_SCAN = b"\xff\xda"
_BEGINNINGS = {"image/png": b"\x89PNG", "image/jpeg": b"\xff\xd8\xff", "image/webp": b"RIFF"}
_MEDIA_TYPES = {name: media_type for media_type, name in _FORMATS.items()}


class BadImageError(ValueError):
    """The bytes are not an image we take; the message says why."""


@dataclass(frozen=True)
class ImageLimits:
    """Upper bounds for one image, checked before decoding."""

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 16 * 1024 * 1024


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

    Raises BadImageError when the bytes exceed the limits, are not of `media_type`, or are damaged.
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
) -> Image.Image:
    """Read the size and mode and check the limits; pixels are decoded by `load`. Raises BadImageError."""
    limits = limits or ImageLimits()
    if len(data) > limits.max_bytes:
        raise BadImageError(f"image of {len(data)} bytes; the limit is {limits.max_bytes}")
    if media_type == "image/x-rgb8":
        return _decode_rgb8(data, width, height, limits)
    if media_type == "image/jpeg" and (scans := bytes(data).count(_SCAN)) > MAX_JPEG_SCANS:
        raise BadImageError(f"JPEG of {scans} scans; the limit is {MAX_JPEG_SCANS}")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=[_FORMATS[media_type]])
    except UnidentifiedImageError as error:
        raise _unreadable(media_type, _what_is_wrong(data, media_type)) from error
    except Exception as error:  # Pillow's decoders raise many types on damaged input; all mean one thing here
        raise _unreadable(media_type, error) from error
    _check_pixels(image.width, image.height, limits)
    return image


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


def load(image: Image.Image) -> Image.Image:
    """Decode the pixels of an opened image and turn them the way up that its EXIF orientation says.

    A damaged EXIF block says nothing. WebP is left as it is stored: so browsers show it. Raises BadImageError when the
    image's data is damaged.
    """
    try:
        image.load()
    except Exception as error:  # as above
        raise _unreadable(_MEDIA_TYPES.get(image.format or "", "image"), error) from error
    if image.format != "WEBP":
        _turn_upright(image)
    return image


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # as above; how the camera was held is not known then
        return


def to_ref(image: Image.Image, media_type: MediaType, quality: int = 95) -> ImageRef:
    """An image as it travels in a JSON body."""
    return ImageRef(
        media_type=media_type,
        data=base64.b64encode(encode(image, media_type, quality)).decode("ascii"),
        width=image.width,
        height=image.height,
    )


def _decode_rgb8(data: bytes | memoryview, width: int | None, height: int | None, limits: ImageLimits) -> Image.Image:
    if width is None or height is None:
        raise BadImageError("image/x-rgb8 carries no header: give `width` and `height`")
    _check_pixels(width, height, limits)
    if len(data) != width * height * 3:
        raise BadImageError(f"image/x-rgb8 of {width}x{height} needs {width * height * 3} bytes; got {len(data)}")
    return Image.frombytes("RGB", (width, height), data)


def _unreadable(media_type: str, reason: object) -> BadImageError:
    return BadImageError(f"not a readable {media_type}: {str(reason) or type(reason).__name__}")


def _what_is_wrong(data: bytes | memoryview, said: MediaType) -> str:
    """Why Pillow could not identify the bytes as `said`: its own words give an address in memory."""
    if not data:
        return "it has no bytes"
    for media_type, beginning in _BEGINNINGS.items():
        if bytes(data[: len(beginning)]) == beginning:
            return "its header is damaged" if media_type == said else f"it begins as {media_type} does"
    return f"its {len(data)} bytes do not begin as an image does"


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise BadImageError(f"image of {width}x{height} = {width * height} pixels; the limit is {limits.max_pixels}")
