"""Files are read apart from their pixels: whatever is cut off is refused, whatever is beside the pixels is harmless."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from wire.containers import MAX_CHUNKS, MAX_SEGMENTS, ContainerError, media_type_of, read_container
from wire.images import BadImageError, ImageLimits, decode, open_header, read_picture, shared

NOISE = np.random.default_rng(0).integers(0, 255, (37, 53, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)


def saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, rows, *more, color=2, bits=8, interlace=0, pieces=None):
    """A PNG of raw rows (each begins with its filter's number). `pieces`: sizes of its data chunks but the last."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlace))
    data, chunks = zlib.compress(rows), []
    for size in pieces or ():
        chunks.append(chunk(b"IDAT", data[:size]))
        data = data[size:]
    chunks.append(chunk(b"IDAT", data))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + b"".join(chunks) + chunk(b"IEND", b"")


def jpeg(*segments, **options):
    """A JPEG with more segments after a comment of one letter."""
    data = saved(PICTURE, "JPEG", **options)
    return data[:2] + segment(0xFE, b"c") + b"".join(segments) + data[2:]


def segment(marker, body):
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def webp_cut_within(data, size):
    """`size` bytes fewer of the last chunk, and lengths that say so."""
    at = 12
    while True:
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        if end + end % 2 >= len(data):
            break
        at = end + end % 2
    body = data[at + 8 : end - size]
    whole = data[12:at] + data[at : at + 4] + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(whole) + 4) + b"WEBP" + whole


FILES = {
    "png": saved(PICTURE, "PNG"),
    "png, palette": saved(PICTURE.quantize(16), "PNG"),
    "png, alpha": saved(PICTURE.convert("RGBA"), "PNG"),
    "png, one bit": saved(PICTURE.convert("1"), "PNG"),
    "png, notes": saved(PICTURE, "PNG", icc_profile=b"p" * 3000, dpi=(72, 72)),
    "apng": saved(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)]),
    "jpeg": saved(PICTURE, "JPEG"),
    "jpeg, grey": saved(PICTURE.convert("L"), "JPEG"),
    "jpeg, inks": saved(PICTURE.convert("CMYK"), "JPEG"),
    "jpeg, colours in full": saved(PICTURE, "JPEG", subsampling=0, quality=100),
    "jpeg, restarts": saved(PICTURE, "JPEG", restart_marker_rows=1),
    "jpeg, progressive": saved(PICTURE, "JPEG", progressive=True),
    "jpeg, notes": saved(PICTURE, "JPEG", icc_profile=b"p" * 200_000, comment=b"c", exif=b"Exif\0\0II*\0"),
    "several pictures": saved(PICTURE, "MPO", save_all=True, append_images=[PICTURE.rotate(180)]),
    "webp": saved(PICTURE, "WEBP"),
    "webp, lossless": saved(PICTURE, "WEBP", lossless=True),
    "webp, alpha": saved(Image.fromarray(np.dstack([NOISE, NOISE[..., 0]])), "WEBP", exif=b"Exif\0\0II*\0"),
    "animated webp": saved(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(180)]),
}


@pytest.mark.parametrize("name", FILES)
def test_whole_files_decode_as_pillow_does(name):
    theirs = Image.open(io.BytesIO(FILES[name]))
    theirs.load()
    ours = decode(FILES[name], media_type_of(FILES[name]))
    assert (ours.size, ours.mode) == (theirs.size, theirs.mode)
    assert ours.tobytes() == theirs.tobytes()
    header = read_container(FILES[name], media_type_of(FILES[name]))
    assert (header.width, header.height) == theirs.size
    assert header.depth >= len(theirs.getbands())


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("apng", "several pictures")])
def test_a_file_that_is_cut_anywhere_is_refused(name):
    """An interrupted download or copy; in the last scan's padding alone, nothing is missing."""
    data = FILES[name]
    for size in {1, 2, 4, 8, 12, 13, 16, 20, 40, len(data) // 3, len(data) // 2}:
        with pytest.raises(BadImageError):
            decode(data[:-size], media_type_of(data))


@pytest.mark.parametrize("name", [name for name in FILES if "jpeg" in name])
def test_a_jpeg_whose_data_ends_early_is_refused_though_it_has_an_end_marker(name):
    """Decoders take the end marker for zeros without end: grey below."""
    data = FILES[name]
    for size in (40, len(data) // 4, len(data) // 2):
        if len(data) - size <= data.rindex(b"\xff\xda") + 16:
            continue
        with pytest.raises(BadImageError, match="not a readable image/jpeg"):
            decode(data[: -size - 2] + b"\xff\xd9", "image/jpeg")


@pytest.mark.parametrize("name", ["webp", "webp, lossless"])
def test_a_webp_whose_data_ends_early_is_refused_though_its_lengths_agree(name):
    for size in (20, 200, len(FILES[name]) // 2):
        with pytest.raises(BadImageError, match="not a readable image/webp"):
            decode(webp_cut_within(FILES[name], size), "image/webp")


WHITE = b"\0" + b"\xff" * 30


@pytest.mark.parametrize("pieces", [None, [1], [0, 1, 1, 0, 3]])
@pytest.mark.parametrize("have", range(11))
def test_a_png_whose_data_ends_early_is_refused_and_never_black(have, pieces):
    """The stream of pixels is whole as a stream (it has its end and its checksum), but has too few rows."""
    data = png(10, 10, WHITE * have, pieces=pieces)
    if have == 10:
        assert decode(data, "image/png").getextrema() == ((255, 255),) * 3
    else:
        with pytest.raises(BadImageError, match="not a readable image/png"):
            decode(data, "image/png")


def test_half_a_last_row_is_refused():
    with pytest.raises(BadImageError, match="not a readable image/png"):
        decode(png(10, 10, WHITE * 9 + WHITE[:15]), "image/png")


@pytest.mark.parametrize("missing", [0, 1, 31, 200])
@pytest.mark.parametrize(
    ("color", "bits", "row"),
    [(2, 8, 31), (0, 8, 11), (0, 1, 3), (0, 16, 21), (3, 8, 11), (3, 2, 4), (4, 8, 21), (6, 16, 81)],
)
def test_a_black_png_is_told_from_one_that_ends_early(color, bits, row, missing):
    palette = (chunk(b"PLTE", b"\0" * 12),) if color == 3 else ()
    rows = bytes(row * 10)
    data = png(10, 10, rows[: max(0, len(rows) - missing)], *palette, color=color, bits=bits)
    if missing:
        with pytest.raises(BadImageError):
            decode(data, "image/png")
    else:
        assert decode(data, "image/png").convert("RGB").getextrema() == ((0, 0),) * 3


def interlaced_rows(width, height):
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b""
    for x, y, dx, dy in passes:
        part = NOISE[y:height:dy, x:width:dx]
        rows += b"".join(b"\0" + line.tobytes() for line in part if part.shape[1])
    return rows


@pytest.mark.parametrize("size", [(53, 37), (1, 1), (3, 2), (5, 9), (8, 8)])
def test_an_interlaced_png(size):
    """Adam7: seven pictures one after the other, of which some are empty in small ones."""
    width, height = size
    rows = interlaced_rows(width, height)
    assert np.array_equal(np.asarray(decode(png(*size, rows, interlace=1), "image/png")), NOISE[:height, :width])
    for missing in {1, len(rows) // 2}:
        with pytest.raises(BadImageError):
            decode(png(*size, rows[:-missing], interlace=1), "image/png")


def test_notes_of_any_size_are_harmless():
    info = PngImagePlugin.PngInfo()
    info.add_text("k", "x" * 3_000_000, zip=True)
    info.add_itxt("note", "ł" * 3_000_000, zip=True)
    data = saved(PICTURE, "PNG", pnginfo=info, icc_profile=b"p" * 3_000_000)
    assert decode(data, "image/png").tobytes() == PICTURE.tobytes()


def test_a_directory_of_many_large_notes_costs_nothing():
    """Exif whose 5,000 entries all name the same 60,000 bytes; a reader that copies them needs 300 MB."""
    entries = b"".join(struct.pack("<HHII", 0x9000 + n, 1, 60_000, 8) for n in range(5000))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 5000) + entries
    data = jpeg(segment(0xE1, exif))
    tracemalloc.start()
    try:
        assert decode(data, "image/jpeg").size == PICTURE.size
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([segment(0xFE, b"")] * (MAX_SEGMENTS + 1), f"more than {MAX_SEGMENTS} segments"),
        ([b"\0" * 5000], "more than 4096 bytes between its segments"),
        ([b"\xff" * 1_000_000], "more than 4096 bytes between its segments"),
        ([b"\xff\xd0"] * 2000, f"more than {MAX_SEGMENTS} segments"),
        ([(b"\0" * 3000 + segment(0xFE, b"")) * 2], "more than 4096 bytes between its segments"),
    ],
)
def test_a_jpeg_of_many_pieces_is_refused(more, message):
    with pytest.raises(BadImageError, match=message):
        decode(jpeg(*more), "image/jpeg")


def test_some_padding_and_many_notes_are_taken():
    data = jpeg(*[segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000))] * 20, b"\xff" * 100, segment(0xFE, b"c"), b"\0" * 50)
    assert decode(data, "image/jpeg").tobytes() == decode(saved(PICTURE, "JPEG"), "image/jpeg").tobytes()


def test_a_png_or_webp_of_many_pieces_is_refused():
    rows = WHITE * 10
    with pytest.raises(BadImageError, match=f"more than {MAX_CHUNKS} chunks"):
        decode(png(10, 10, rows, pieces=[0] * (MAX_CHUNKS + 1)), "image/png")
    body = FILES["webp"][12:] + b"JUNK\0\0\0\0" * (MAX_CHUNKS + 1)
    with pytest.raises(BadImageError, match=f"more than {MAX_CHUNKS} chunks"):
        decode(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body, "image/webp")


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (png(60_000, 60_000, b""), "image/png"),
        (b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff\x3f\0" * 2 + bytes(8), "image/webp"),
        (
            saved(PICTURE, "JPEG").replace(struct.pack(">HH", 37, 53), struct.pack(">HH", 60_000, 60_000), 1),
            "image/jpeg",
        ),
    ],
)
def test_a_size_is_refused_before_a_decoder_sees_the_file(monkeypatch, data, media_type):
    monkeypatch.setattr(Image, "open", lambda *_args, **_kwargs: pytest.fail("a decoder was asked"))
    with pytest.raises(BadImageError, match="pixels; the limit is 16777216"):
        decode(data, media_type)


def test_scans_times_pixels_are_bounded():
    data = saved(Image.new("L", (64, 64)), "JPEG", progressive=True)
    with pytest.raises(BadImageError, match=r"scans over 64x64 pixels; the limit is 16 times 4096") as refused:
        more = data[data.rindex(b"\xff\xda") : -2] * 40
        open_header(data[:-2] + more + b"\xff\xd9", "image/jpeg", limits=ImageLimits(max_pixels=4096))
    assert "JPEG of " in str(refused.value)
    assert decode(data, "image/jpeg", limits=ImageLimits(max_pixels=4096)).size == (64, 64)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe0\0\0", b"\xff\xd8\xff\xda\0\4"]
)
def test_jpegs_of_nothing_are_refused(data):
    with pytest.raises(ContainerError):
        read_container(data, "image/jpeg")


def test_shared_pixels_are_copied_by_who_writes():
    image = decode(FILES["png"], "image/png")
    first, second = shared(image), shared(image)
    first.paste("red", (0, 0, 10, 10))
    first.putpixel((20, 20), (1, 2, 3))
    second.thumbnail((8, 8))
    assert image.tobytes() == PICTURE.tobytes()
    assert shared(image).tobytes() == PICTURE.tobytes()
    assert first.getpixel((20, 20)) == (1, 2, 3)


def test_a_picture_is_read_whatever_its_file_is_called(tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(FILES["png"])
    assert read_picture(path).tobytes() == PICTURE.tobytes()
    path.write_bytes(FILES["png"][:-30])
    with pytest.raises(BadImageError):
        read_picture(path)
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "dog.png")


def test_walking_through_a_file_takes_time_for_its_pieces_only():
    """A bound against a hang, not a measurement: three megabytes of restarts, stuffed bytes and padding in one scan."""
    data = saved(PICTURE, "JPEG")
    hostile = data[:-2] + b"\xff\xd0" * 500_000 + b"\xff\0" * 500_000 + b"\xff" * 1_000_000 + b"\xff\xd9"
    started = time.monotonic()
    read_container(hostile, "image/jpeg")
    assert time.monotonic() - started < 20
