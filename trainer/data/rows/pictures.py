"""Images of a row as paths: those that a row holds itself are written once, under their content's hash.

A row names an image by a path, or holds it: as a data URL or base64 text, as {bytes, path} of a Parquet file, as a list of
rows of pixels, or as a Pillow image that a preprocessing file made.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.data.prompts.checks import DataError, check_image, shown
from wire.containers import media_type_of
from wire.images import BadImageError, ImageLimits, open_header

COLUMNS = ("images", "image", "image_path", "image_paths", "source_images")
MARK = "<image>"
_LIMITS = ImageLimits()
_ENDINGS = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
_DATA_URL = re.compile(r"data:(?P<type>[\w.+/-]*);base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")  # shorter than any image, and without a path's dot


def default_cache() -> Path:
    """Where images of rows are written where the recipe names no folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "rewards-as-services" / "images"


class PictureStore:
    """A folder of images, each once, named by the hash of its bytes. Processes may write to it at the same time."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = default_cache() if folder is None else Path(folder)
        self._known: set[str] = set()

    def keep(self, where: str, data: bytes) -> str:
        """The path of these bytes, which are checked, but not decoded.

        Raises:
            DataError: no PNG, JPEG or WebP, too many bytes or pixels, or the folder cannot be written to.
        """
        media_type = media_type_of(data)
        try:
            open_header(data, media_type or "image/png", limits=_LIMITS)
        except BadImageError as error:
            raise DataError(f"{where}: {error}") from error
        assert media_type is not None, "open_header has refused other bytes"
        digest = hashlib.sha256(data).hexdigest()
        path = self.folder / digest[:2] / f"{digest[:40]}{_ENDINGS[media_type]}"
        if digest not in self._known:
            try:
                _write_once(path, data)
            except OSError as error:
                raise DataError(
                    f"{where}: the image cannot be written to {path} ({error.strerror}); name another folder as `image_cache`"
                ) from error
            self._known.add(digest)
        return str(path)


def row_images(
    where: str,
    row: Mapping[str, Any],
    folders: Sequence[Path],
    store: PictureStore,
    most: int,
    parts: Sequence[Any] = (),
) -> tuple[tuple[str, ...], frozenset[str]]:
    """The paths of a row's images, in order, and the columns that they come from. A list in `image` works like `images`.

    Args:
        folders: where relative paths count from; the first that has the file.
        most: how many images a prompt may have.
        parts: of each part of the row's messages that is an image, the image that it holds itself, or None.

    Raises:
        DataError: two columns have images, or a column and the messages; too many; one that is not there, or that cannot be taken;
            or parts that no image belongs to.
    """
    columns = [name for name in COLUMNS if name in row]
    given = {name: values for name in columns if (values := _listed(row[name]))}
    if any(part is not None for part in parts):
        given["content"] = list(parts)
    if len(given) > 1 and "content" in given:
        column = next(iter(given))
        raise DataError(
            f"{where}: {column} and the messages' own parts both have images; keep one of them, by rename_columns: {{{column}: null}}"
        )
    if len(given) > 1:
        raise DataError(
            f"{where}: {' and '.join(given)} both have images; keep one of them, by rename_columns: {{{list(given)[-1]}: null}}"
        )
    found = sum(map(len, given.values()))
    if parts and (len(parts) != found or None in given.get("content", ())):
        held = sum(part is not None for part in parts) or found
        raise DataError(
            f"{where}: {len(parts)} message part{'s' * (len(parts) != 1)} of type image for {held} image{'s' * (held != 1)}; give each "
            "its image, in the part itself or in the column images"
        )
    for name, values in given.items():
        if len(values) > most:
            raise DataError(
                f"{where}: {name}: {len(values)} images are more than {most}; leave some out, or raise policy.max_images"
            )
        numbered = [
            (f"{where}: {name}[{i}]" if len(values) > 1 else f"{where}: {name}", v) for i, v in enumerate(values)
        ]
        return tuple(_path_of(place, value, folders, store) for place, value in numbered), frozenset(columns)
    return (), frozenset(columns)


def mark_count(where: str, field: str, texts: Sequence[str], images: int) -> None:
    """Raises DataError where texts mark places for images, and not one for each."""
    marks = sum(text.count(MARK) for text in texts)
    if marks and marks != images:
        raise DataError(
            f"{where}: {field}: {marks} {MARK} mark{'s' * (marks != 1)} for {images} image{'s' * (images != 1)}; write one mark "
            "for each image, or none: then all stand before the text"
        )


def _listed(value: Any) -> list[Any]:
    """The images of a column: a list of them, or one; empty for none."""
    if value is None or value == "":
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return [value]
    if isinstance(value, list | tuple) and not _is_pixels(value):
        return [each for each in value if each is not None]
    return [value]


def _path_of(where: str, value: Any, folders: Sequence[Path], store: PictureStore) -> str:
    if isinstance(value, Mapping) and value.get("bytes") is None and value.get("path") is not None:
        value = value["path"]
    data = _held(where, value)
    if data is not None:
        return store.keep(where, data)
    if not isinstance(value, str):
        raise DataError(f"{where}: {shown(value)} is a {type(value).__name__}, not a path or an image")
    value = value.removeprefix("file://")
    if re.match(r"https?://", value, re.IGNORECASE):
        raise DataError(
            f"{where}: {shown(value)} is a web address, which is not fetched; download it and give the path"
        )
    return check_image(where, value, folders)


def _held(where: str, value: Any) -> bytes | None:
    """The bytes of an image that a row holds itself; None where it may name a path."""
    if isinstance(value, Mapping):
        return _bytes_of(where, value.get("bytes"))
    if isinstance(value, Image.Image):
        return encoded(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, np.ndarray) or _is_pixels(value):
        return _of_pixels(where, value)
    if isinstance(value, str) and ((url := _DATA_URL.match(value)) or _BASE64.fullmatch(value)):
        return _decoded(where, value, url.end() if url else 0)
    return None


def _bytes_of(where: str, value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):  # as JSON has them
        return _decoded(where, value, 0)
    raise DataError(
        f"{where}: bytes: {shown(value)} is a {type(value).__name__}, not an image's bytes, and there is no path"
    )


def _decoded(where: str, text: str, start: int) -> bytes:
    """The bytes of base64 text from `start` on, not more than an image may have."""
    if len(text) - start > _LIMITS.max_bytes * 4 // 3 + 4:
        raise DataError(
            f"{where}: {len(text) - start} base64 characters; an image has at most {_LIMITS.max_bytes} bytes"
        )
    try:
        return base64.b64decode("".join(text[start:].split()), validate=True)
    except binascii.Error as error:
        raise DataError(f"{where}: not base64 ({error})") from error


def _is_pixels(value: Any) -> bool:
    """Whether nested lists are (height, width, 3) numbers: looked at by its first pixel."""
    try:
        pixel = value[0][0]
    except (TypeError, IndexError, KeyError):
        return False
    return isinstance(pixel, list | tuple) and len(pixel) in (3, 4) and all(isinstance(each, int) for each in pixel)


def _of_pixels(where: str, value: Any) -> bytes:
    try:
        pixels = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise DataError(
            f"{where}: {shown(value)} is no rectangle of pixels: its rows have different lengths"
        ) from error
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.size > 4 * _LIMITS.max_pixels:
        raise DataError(
            f"{where}: pixels of shape {pixels.shape}; give (height, width, 3), at most {_LIMITS.max_pixels} of them"
        )
    if pixels.dtype.kind not in "iu" or pixels.min(initial=0) < 0 or pixels.max(initial=0) > 255:
        raise DataError(f"{where}: pixels are whole numbers of 0 to 255")
    return encoded(Image.fromarray(pixels.astype(np.uint8)))


def encoded(image: Image.Image) -> bytes:
    """A Pillow image as PNG; one that was opened from known bytes and never touched, as these."""
    known: bytes | None = getattr(image, "_source_bytes", None)
    if known is not None and getattr(image, "_im", None) is None:
        return known
    buffer = io.BytesIO()
    plain = image if image.mode in ("1", "L", "LA", "RGB", "RGBA", "P", "I;16") else image.convert("RGB")
    plain.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def opened(where: str, data: bytes) -> Image.Image:
    """The image of these bytes as `datasets` shows it to a user's function: of its own mode, not decoded yet.

    Raises DataError: no PNG, JPEG or WebP, or more bytes or pixels than are taken.
    """
    media_type = media_type_of(data)
    try:
        open_header(data, media_type or "image/png", limits=_LIMITS)
    except BadImageError as error:
        raise DataError(f"{where}: {error}") from error
    image = Image.open(io.BytesIO(data))
    image._source_bytes = data  # type: ignore[attr-defined]  # so that what nobody changed is written as it came
    return image


def _write_once(path: Path, data: bytes) -> None:
    """Another process may write the same file at the same time: it appears whole, or not at all."""
    if path.is_file() and path.stat().st_size == len(data):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)  # half a file is of no use to anyone
        raise
