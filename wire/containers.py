"""What a PNG, JPEG or WebP file is made of, read without decoding a pixel: its size, which way up it is, where it ends.

A decoder is then given only what pixels come from. Texts, colour profiles and camera notes, of which a file may hold any
amount in any number of pieces, are left out: none of them is a reason to refuse an image, and none costs anything.
Formats: PNG (W3C, third edition), JPEG (ITU-T T.81), WebP (RFC 9649), Exif 2.3.
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

EncodedType = Literal["image/png", "image/webp", "image/jpeg"]

# Far above what encoders write: 32 MiB of PNG are 4,096 chunks (libpng writes 8 KiB each), a JPEG has some 20 segments
# and 16 more for each megabyte of notes.
MAX_CHUNKS = 16_384
MAX_SEGMENTS = 1024
# Each scan of a progressive JPEG is a pass over all pixels, in as little as 20 bytes. Encoders write about ten.
MAX_SCANS = 64
MAX_PADDING = 4096  # bytes between a JPEG's segments, which mean nothing

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # x y dx dy

_OTHERS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"\0\0\0 ftypavif": "an AVIF",
    b"\0\0\0\x1cftypavif": "an AVIF",
    b"%PDF": "a PDF",
    b"<svg": "an SVG",
}

_EOI, _SOS, _APP0, _APP1, _APP14 = 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
_SCAN = bytes((0xFF, _SOS))
_ALONE = frozenset((0x01, 0xD8, *range(0xD0, 0xD8)))  # markers without a segment
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ONE_PASS = frozenset((0xC0, 0xC1))  # sequential, by Huffman's codes
_ARITHMETIC = frozenset(range(0xC9, 0xD0))
_JPEG_PIXELS = _FRAMES | {0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF}
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # neither a stuffed byte nor a restart
# Decoders read a few bytes ahead of the last pixel and take the end marker for zeros without end. With these bytes in
# the marker's place, data that is whole decodes as before, and data that is not runs out.
_READ_AHEAD = b"\x55" * 16
_NOISE = bytes(number * 151 % 255 for number in range(1024))

_EXIF = b"Exif\0\0"
_ORIENTATION, _SHORT = 0x0112, 3
_LONGEST_EXIF = 1 << 16  # as in a JPEG, where a segment has room for no more


class ContainerError(ValueError):
    """The file is damaged, ends early, or is made of too many pieces; the message says which."""


class TooManyPiecesError(ContainerError):
    """The file is made of more pieces than an image needs."""


@dataclass(frozen=True)
class Container:
    """One file. `width` and `height` are in pixels, as stored; `orientation` is Exif's, 1 (upright) to 8, and
    `exif` the camera's notes as if the image were upright; they are at most 64 KiB, and nobody reads them here.

    `pixels` is the file as a decoder is to see it, and `depth` the bytes of a pixel once decoded. `probe` is the same file
    with more data in its last scan, where that is the only way to see whether the data was all there: it must decode to
    the same pixels.
    """

    media_type: EncodedType
    width: int
    height: int
    depth: int
    pixels: bytes = field(repr=False)
    orientation: int = 1
    scans: int = 1
    exif: bytes = field(default=b"", repr=False)
    interlaced: bool = False
    probe: bytes | None = field(default=None, repr=False)


def media_type_of(head: bytes | memoryview) -> EncodedType | None:
    """The type of an image from its first 12 bytes or more; None when they are none of ours."""
    head = bytes(head[:12])
    if head.startswith(_PNG[:4]):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if head.startswith(b"RIFF") and head[8:] == b"WEBP" else None


def other_type_of(head: bytes | memoryview) -> str | None:
    """What else a file is that people take for an image we read, with its article, from its first 16 bytes or more."""
    head = bytes(head[:16])
    return next((name for mark, name in _OTHERS.items() if head.startswith(mark)), None)


def read_container(data: bytes, media_type: EncodedType) -> Container:
    """Walk through a file. Time grows with its pieces, which are bounded. Raises ContainerError."""
    readers = {"image/png": _read_png, "image/jpeg": _read_jpeg, "image/webp": _read_webp}
    try:
        return readers[media_type](data)
    except struct.error as error:  # a field beyond the end
        raise ContainerError("its header is damaged") from error


def _read_png(data: bytes) -> Container:
    kept: list[tuple[int, int]] = []
    at, chunks, whole, exif = len(_PNG), 0, True, b""
    if not data.startswith(_PNG) or data[12:16] != b"IHDR":
        raise ContainerError("its header is damaged")
    width, height, bits, color, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    while True:
        if at + 12 > len(data):
            raise _cut(data, "its end chunk (IEND)")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if not kind.isalpha():
            raise ContainerError(f"at byte {at} {kind!r} is no name of a chunk")
        if end > len(data):
            raise _cut(data, "the end of a chunk")
        if kind in _PNG_PIXELS:
            kept.append((at, end))
        else:
            whole = False
            if kind == b"eXIf" and length <= _LONGEST_EXIF:
                exif = data[at + 8 : end - 4]
        at = end
        chunks += 1
        if kind == b"IEND":
            break
        if chunks >= MAX_CHUNKS:
            raise TooManyPiecesError(f"PNG of more than {MAX_CHUNKS} chunks, the limit; save it anew")
    pixels = data if whole else b"".join((_PNG, *(data[start:end] for start, end in kept)))
    depth = _CHANNELS.get(color, 1) * (2 if bits == 16 and color == 0 else 1)
    upright, notes = _orientation(exif)
    return Container("image/png", width, height, depth, pixels, upright, 1, notes, bool(interlace))


def png_data_is_whole(png: bytes) -> bool:
    """Whether the compressed data of a PNG that `read_container` took has all its rows."""
    wanted, have, header = _png_size(png), 0, 2
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)  # without zlib's header and checksum: decoders do not look at it
    at = len(_PNG)
    try:
        while have < wanted and not inflater.eof:
            length, kind = struct.unpack_from(">I4s", png, at)
            if kind == b"IEND":
                return False
            piece = png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
            header, piece = max(0, header - len(piece)), piece[header:]
            while piece and have < wanted and not inflater.eof:
                have += len(inflater.decompress(piece, min(1 << 18, wanted - have)))
                piece = inflater.unconsumed_tail
            at += 12 + length
    except zlib.error:
        return False
    return have >= wanted


def _png_size(png: bytes) -> int:
    """Bytes of all rows, each with the byte that names its filter; of an interlaced image, those of the seven passes."""
    width, height, bits, color, _, _, interlace = struct.unpack_from(">IIBBBBB", png, 16)
    size = 0
    for x, y, dx, dy in _ADAM7 if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        if columns > 0 and rows > 0:
            size += rows * (1 + -(-columns * bits * _CHANNELS[color] // 8))
    return size


def _read_jpeg(data: bytes) -> Container:
    kept, scans, exif = [data[:2]], 0, b""
    frame: tuple[int, int, int, int] | None = None
    once: set[bytes] = set()
    for marker, body, whole in _segments(data):
        if marker in _FRAMES and frame is None:
            frame = (marker, *struct.unpack_from(">HH", body, 1), body[5] if len(body) > 5 else 0)
        if marker == _SOS or marker in _JPEG_PIXELS or _says_colors(marker, body, once):
            kept.append(whole)
        elif marker == _APP1 and not exif and body.startswith(_EXIF):
            exif = body
        scans += marker == _SOS
        if scans > MAX_SCANS:
            raise TooManyPiecesError(f"JPEG of {data.count(_SCAN)} scans; the limit is {MAX_SCANS}")
    if frame is None or not scans:
        raise ContainerError("its header is damaged")
    return _as_jpeg(kept, frame, scans, exif)


def _segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Marker, body, and the whole of each segment up to the end marker; a scan's whole has its data."""
    at, padding = 2, 0
    for number in itertools.count(1):
        found = _MARKER.search(data, at, at + MAX_PADDING + 2)
        if found is None and len(data) - at <= MAX_PADDING:
            raise _cut(data, "its end marker")
        padding += found.start() - at if found is not None else MAX_PADDING + 1
        if found is None or padding > MAX_PADDING:
            raise TooManyPiecesError(f"JPEG with more than {MAX_PADDING} bytes between its segments, the limit")
        start, marker = found.start(), data[found.start() + 1]
        if marker == _EOI:
            return
        if number > MAX_SEGMENTS:
            raise TooManyPiecesError(f"JPEG of more than {MAX_SEGMENTS} segments, the limit; save it anew")
        at = start + 2
        if marker in _ALONE:
            continue
        [length] = struct.unpack_from(">H", data, at)
        body_end = at = at + length
        if length < 2 or at > len(data):
            raise _cut(data, "the end of a segment")
        if marker == _SOS:
            after = _AFTER_SCAN.search(data, at)
            if after is None:
                raise _cut(data, "its end marker")
            at = after.start()
        yield marker, data[start + 4 : body_end], data[start:at]


def _cut(data: bytes, before: str) -> ContainerError:
    return ContainerError(f"it ends after {len(data)} bytes, before {before}")


def _says_colors(marker: int, body: bytes, once: set[bytes]) -> bool:
    """Whether this is the first JFIF or Adobe segment: they say how the components make colours."""
    mark = b"JFIF" if marker == _APP0 else b"Adobe" if marker == _APP14 else b""
    if not mark or not body.startswith(mark) or mark in once:
        return False
    once.add(mark)
    return True


def _as_jpeg(kept: list[bytes], frame: tuple[int, int, int, int], scans: int, exif: bytes) -> Container:
    marker, height, width, components = frame
    depth, end = max(1, components), bytes((0xFF, _EOI))
    upright, notes = _orientation(exif)
    if marker in _ONE_PASS and scans == 1:
        return Container("image/jpeg", width, height, depth, b"".join((*kept, _READ_AHEAD)), upright, 1, notes)
    # Of several passes all data is read before the first pixel is made, so the decoder needs the end marker.
    probe = None if marker in _ARITHMETIC else b"".join((*kept, _NOISE, end))
    pixels = b"".join((*kept, end))
    return Container("image/jpeg", width, height, depth, pixels, upright, scans, notes, probe=probe)


def _read_webp(data: bytes) -> Container:
    [size] = struct.unpack_from("<I", data, 4)
    end = 8 + size
    if end > len(data):
        raise ContainerError(f"it ends after {len(data)} bytes; it says it has {end}")
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        [packed] = struct.unpack_from("<I", data, 21)
        width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise ContainerError("its header is damaged")
    at, chunks = 12, 0
    while at + 8 <= end:
        [length] = struct.unpack_from("<I", data, at + 4)
        at += 8 + length + length % 2
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise TooManyPiecesError(f"WebP of more than {MAX_CHUNKS} chunks, the limit; save it anew")
    return Container("image/webp", width, height, 3 if kind == b"VP8 " else 4, data)


def _orientation(exif: bytes) -> tuple[int, bytes]:
    """Exif's orientation, from the first directory of its TIFF block, and the block with 1, upright, in its place.

    What is damaged says nothing: 1.
    """
    tiff = exif.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1, exif
    try:
        [at] = struct.unpack_from(f"{order}I", tiff, 4)
        [entries] = struct.unpack_from(f"{order}H", tiff, at)
        for place in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, place)
            if tag == _ORIENTATION and kind == _SHORT and count == 1:
                upright = tiff[: place + 8] + struct.pack(f"{order}H", 1) + tiff[place + 10 :]
                return (value if 1 <= value <= 8 else 1), _EXIF + upright
    except struct.error:
        return 1, exif
    return 1, exif
