"""Image encodings: what comes back is what went in, and bad input is refused before it is decoded."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from wire import images
from wire.images import BadImageError, ImageLimits, decode, decode_ref, encode, to_ref
from wire.schema import ImageRef

LOSSLESS = ["image/png", "image/webp", "image/x-rgb8"]
SIDES = st.integers(1, 40)
RGB = st.tuples(SIDES, SIDES, st.just(3)).flatmap(lambda shape: arrays.arrays(np.uint8, shape))
RGBA = st.tuples(SIDES, SIDES, st.just(4)).flatmap(lambda shape: arrays.arrays(np.uint8, shape))


def pixels(image, mode="RGB"):
    return np.asarray(image.convert(mode))


@pytest.mark.parametrize("media_type", LOSSLESS)
@settings(max_examples=40, deadline=None)
@given(array=RGB)
def test_lossless_encodings_return_the_same_bytes(media_type, array):
    image = Image.fromarray(array)
    back = decode(encode(image, media_type), media_type, width=image.width, height=image.height)
    assert back.mode == "RGB"
    assert back.tobytes() == image.tobytes()


@pytest.mark.parametrize("media_type", ["image/png", "image/webp"])
@settings(max_examples=40, deadline=None)
@given(array=RGBA)
def test_alpha_and_the_colours_under_it_come_back(media_type, array):
    image = Image.fromarray(array)
    back = decode(encode(image, media_type), media_type)
    assert np.array_equal(pixels(back, "RGBA"), array)


@settings(max_examples=20, deadline=None)
@given(array=RGBA)
def test_rgb8_drops_alpha(array):
    image = Image.fromarray(array)
    assert encode(image, "image/x-rgb8") == array[..., :3].tobytes()


@settings(max_examples=20, deadline=None)
@given(array=RGB)
def test_jpeg_keeps_the_size(array):
    image = Image.fromarray(array)
    assert decode(encode(image, "image/jpeg"), "image/jpeg").size == image.size


def test_jpeg_quality_counts():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    assert len(encode(noise, "image/jpeg", 95)) > 2 * len(encode(noise, "image/jpeg", 30))


@pytest.mark.parametrize("media_type", [*LOSSLESS, "image/jpeg"])
def test_reference_round_trip(media_type):
    image = Image.new("RGB", (7, 3), (9, 90, 200))
    ref = ImageRef.model_validate_json(to_ref(image, media_type).model_dump_json())
    assert decode_ref(ref, {}).size == (7, 3)
    part = ImageRef(media_type=media_type, part="p", width=7, height=3)
    assert decode_ref(part, {"p": encode(image, media_type)}).size == (7, 3)


def png_header(width, height, data=b""):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def test_size_is_refused_from_the_header(monkeypatch):
    monkeypatch.setattr(images, "load", lambda _image: pytest.fail("decoded before the limit was checked"))
    with pytest.raises(BadImageError, match="6000x6000 = 36000000 pixels; the limit is 16777216"):
        decode(png_header(6000, 6000), "image/png")


def test_huge_header_is_refused():
    with pytest.raises(BadImageError):
        decode(png_header(100_000, 100_000), "image/png")


def test_own_limits_win():
    small = encode(Image.new("RGB", (10, 10)), "image/png")
    with pytest.raises(BadImageError, match="10x10 = 100 pixels; the limit is 99"):
        decode(small, "image/png", limits=ImageLimits(max_pixels=99))
    with pytest.raises(BadImageError, match=f"image of {len(small)} bytes; the limit is 20"):
        decode(small, "image/png", limits=ImageLimits(max_bytes=20))
    assert decode(small, "image/png", limits=ImageLimits(max_pixels=100)).size == (10, 10)


@pytest.mark.parametrize("media_type", ["image/png", "image/webp", "image/jpeg"])
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200), cut=st.integers(0, 200))
def test_damaged_bytes_are_one_kind_of_error(media_type, data, cut):
    whole = encode(Image.new("RGB", (16, 16), "red"), media_type)
    for damaged in (data, whole[:cut] + data):
        try:
            assert decode(damaged, media_type).size
        except BadImageError as error:
            assert str(error)


@pytest.mark.parametrize("media_type", ["image/png", "image/webp", "image/jpeg"])
def test_truncated_image_is_refused(media_type):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    whole = encode(noise, media_type)
    with pytest.raises(BadImageError, match=f"not a readable {media_type}"):
        decode(whole[: len(whole) // 2], media_type)


@pytest.mark.parametrize("said", ["image/png", "image/jpeg", "image/webp"])
@pytest.mark.parametrize("is_so", ["image/png", "image/jpeg", "image/webp"])
def test_the_first_bytes_say_what_a_file_is(said, is_so):
    assert decode(encode(Image.new("RGB", (5, 4)), is_so), said).size == (5, 4)


def test_what_is_no_image_is_named():
    with pytest.raises(BadImageError, match=r"^not a readable image/png: its 5 bytes do not begin as an image does$"):
        decode(b"hello", "image/png")
    with pytest.raises(BadImageError, match=r"^not a readable image/png: its header is damaged$"):
        decode(b"\x89PNG and then nothing", "image/png")
    with pytest.raises(BadImageError, match=r"^not a readable image/png: it has no bytes$"):
        decode(b"", "image/png")
    with pytest.raises(BadImageError, match=r"^not a readable image/jpeg: it begins as a GIF does; PNG, JPEG and WebP"):
        decode(b"GIF89a" + bytes(30), "image/jpeg")


@pytest.mark.parametrize(
    ("data", "width", "height", "message"),
    [
        (b"abc", 1, 2, "needs 6 bytes; got 3"),
        (b"abcd", 1, 1, "needs 3 bytes; got 4"),
        (b"abc", None, 1, "give `width` and `height`"),
        (b"abc", 1, None, "give `width` and `height`"),
        (b"", 65_536, 65_536, "the limit is 16777216"),
    ],
)
def test_raw_pixels_must_fit_their_size(data, width, height, message):
    with pytest.raises(BadImageError, match=message):
        decode(data, "image/x-rgb8", width=width, height=height)


def test_base64_is_checked_and_bounded_before_it_is_decoded():
    with pytest.raises(BadImageError, match="not base64"):
        decode_ref(ImageRef(media_type="image/png", data="a?b"), {})
    with pytest.raises(BadImageError, match="base64 characters; the limit is 10 bytes"):
        text = base64.b64encode(b"x" * 100).decode()
        decode_ref(ImageRef(media_type="image/png", data=text), {}, ImageLimits(max_bytes=10))


def test_missing_part_is_named():
    with pytest.raises(BadImageError, match="no multipart part named 'img'"):
        decode_ref(ImageRef(media_type="image/png", part="img"), {})


# The picture A B C over D E F, upright, as EXIF's orientations store it (what row 0 and column 0 are is in Exif 2.3, 4.6.4).
STORED = {
    1: ["ABC", "DEF"],
    2: ["CBA", "FED"],
    3: ["FED", "CBA"],
    4: ["DEF", "ABC"],
    5: ["AD", "BE", "CF"],
    6: ["CF", "BE", "AD"],
    7: ["FC", "EB", "DA"],
    8: ["DA", "EB", "FC"],
    9: ["ABC", "DEF"],  # there is no such orientation
}


def photograph(rows, orientation, form="PNG"):
    """Each letter as a square of 8 grey pixels, and what the camera noted."""
    squares = np.kron([[40 * (ord(letter) - ord("A")) for letter in row] for row in rows], np.ones((8, 8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a maker"
    buffer = io.BytesIO()
    Image.fromarray(squares.astype(np.uint8)).save(buffer, form, exif=exif)
    return buffer.getvalue()


def letters(image):
    levels = np.asarray(image.convert("L"))[4::8, 4::8]
    return ["".join(chr(ord("A") + round(level / 40)) for level in row) for row in levels.tolist()]


@pytest.mark.parametrize(("media_type", "form"), [("image/jpeg", "JPEG"), ("image/jpeg", "MPO"), ("image/png", "PNG")])
@pytest.mark.parametrize("orientation", STORED)
def test_a_photograph_is_upright_and_not_turned_twice(media_type, form, orientation):
    image = decode(photograph(STORED[orientation], orientation, form), media_type)
    assert letters(image) == ["ABC", "DEF"]
    assert letters(ImageOps.exif_transpose(image)) == ["ABC", "DEF"]
    assert image.getexif()[0x010F] == "a maker"


def test_webp_is_as_it_is_stored_because_browsers_show_it_so():
    assert letters(decode(photograph(STORED[6], 6, "WEBP"), "image/webp")) == STORED[6]


@settings(max_examples=60, deadline=None)
@given(damage=st.binary(max_size=60), cut=st.integers(0, 60))
def test_damaged_exif_is_no_error(damage, cut):
    whole = Image.open(io.BytesIO(photograph(STORED[6], 6))).info["exif"]
    buffer = io.BytesIO()
    Image.new("L", (3, 2)).save(buffer, "PNG", exif=whole[:cut] + damage)
    assert sorted(decode(buffer.getvalue(), "image/png").size) == [2, 3]


def test_exif_that_is_none_turns_nothing():
    buffer = io.BytesIO()
    Image.new("L", (3, 2)).save(buffer, "JPEG", exif=b"Exif\0\0" + b"no notes of any camera")
    assert decode(buffer.getvalue(), "image/jpeg").size == (3, 2)
