"""Images of rows: by path, as bytes of a table, as data URLs, base64, pixels; written once by their content, checked before."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.text_rows import png
from trainer.data.prompts import DataError
from trainer.data.rows import pictures
from trainer.data.rows.pictures import PictureStore, default_cache, mark_count, row_images

RED, BLUE = png((255, 0, 0)), png((0, 0, 255))


def images_of(folder: Path, row: dict[str, Any], most: int = 4) -> tuple[str, ...]:
    paths, _ = row_images("rows.jsonl:7", row, (folder, folder / "images"), PictureStore(folder / "cache"), most)
    return paths


def contents(paths: tuple[str, ...]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


def test_paths_count_from_the_folders(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(RED)
    (tmp_path / "b.png").write_bytes(BLUE)
    for row in ({"image": "a.png"}, {"images": ["a.png"]}, {"image": ["a.png"]}, {"image": '["a.png"]'}):
        assert images_of(tmp_path, row) == (str(tmp_path / "images" / "a.png"),), row
    assert contents(images_of(tmp_path, {"images": ["b.png", {"path": "a.png", "bytes": None}]})) == [BLUE, RED]
    assert images_of(tmp_path, {"image": None, "images": []}) == () == images_of(tmp_path, {"prompt": "x"})


@pytest.mark.parametrize(
    "value",
    [
        {"bytes": RED, "path": "from/elsewhere.png"},
        {"bytes": base64.b64encode(RED).decode(), "path": None},
        RED,
        f"data:image/png;base64,{base64.b64encode(RED).decode()}",
        base64.encodebytes(RED).decode(),
    ],
)
def test_what_a_row_holds_is_written_once_by_its_content(tmp_path: Path, value: Any) -> None:
    (path,) = images_of(tmp_path, {"image": value})
    assert contents((path,)) == [RED] and Path(path).parents[1] == tmp_path / "cache"
    before = Path(path).stat().st_mtime_ns
    assert images_of(tmp_path, {"images": [RED, value, BLUE]})[:2] == (path, path)
    assert Path(path).stat().st_mtime_ns == before
    assert len(list((tmp_path / "cache").rglob("*.*"))) == 2, "one file for each content, nothing half written"


def test_pixels_and_pillow_images_become_png(tmp_path: Path) -> None:
    pixels = [[[255, 0, 0]] * 5, [[0, 0, 255]] * 5]
    for value in (pixels, Image.open(images_of(tmp_path, {"image": pixels})[0])):
        (path,) = images_of(tmp_path, {"image": value})
        with Image.open(path) as image:
            assert image.size == (5, 2) and image.getpixel((4, 1)) == (0, 0, 255)


def test_an_image_that_nobody_touched_keeps_its_bytes(tmp_path: Path) -> None:
    """A JPEG is not decoded and encoded again because a preprocessing file was shown it; one that was changed is."""
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.jpg", quality=50)
    data = (tmp_path / "a.jpg").read_bytes()
    shown = pictures.opened("x", data)
    assert shown.mode == "RGB" and pictures.encoded(shown) == data
    shown.putpixel((0, 0), (255, 255, 255))
    assert pictures.encoded(shown) != data
    (path,) = images_of(tmp_path, {"image": shown})
    with Image.open(path) as image:
        assert image.getpixel((0, 0)) == (255, 255, 255)


def header_only(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds no pixel."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + RED[33:]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("none.png", "image: no image at"),
        ("https://example.com/cat.png", "is a web address, which is not fetched; download it and give the path"),
        ("cat.bmp", "ends in none of .png, .jpg, .jpeg, .webp"),
        (7, "7 is a int, not a path or an image"),
        ({"path": None}, "bytes: None is a NoneType, not an image's bytes, and there is no path"),
        ({"bytes": 5}, "bytes: 5 is a int, not an image's bytes"),
        ({"bytes": b""}, "it has no bytes"),
        ({"bytes": b"GIF89a" + b"\0" * 20}, "begins as a GIF does; PNG, JPEG and WebP are taken"),
        ({"bytes": RED[:40]}, "not a readable image/png"),
        ("data:image/png;base64,@@@@", "not base64"),
        (header_only(100_000, 100_000), "image of 100000x100000 = 10000000000 pixels; the limit is 16777216"),
        ([[[1, 2, 3]], [[1, 2, 3], [1, 2, 3]]], "its rows have different lengths"),
        ([[[1, 2, 999]]], "pixels are whole numbers of 0 to 255"),
    ],
)
def test_an_image_that_cannot_be_taken_is_named(tmp_path: Path, value: Any, words: str) -> None:
    with pytest.raises(DataError) as raised:
        images_of(tmp_path, {"image": value})
    assert str(raised.value).startswith("rows.jsonl:7: image") and words in str(raised.value)
    assert not (tmp_path / "cache").exists()


def test_the_limit_of_bytes_comes_before_base64_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_LIMITS", pictures.ImageLimits(max_bytes=30))
    monkeypatch.setattr(pictures.base64, "b64decode", pytest.fail)
    with pytest.raises(DataError, match=r"image: 1000 base64 characters; an image has at most 30 bytes"):
        images_of(tmp_path, {"image": "data:image/png;base64," + "A" * 1000})


def test_more_images_than_a_prompt_may_have_are_refused_with_both_numbers(tmp_path: Path) -> None:
    row = {"images": [RED] * 5}
    with pytest.raises(DataError, match=r"rows\.jsonl:7: images: 5 images are more than 4; .*policy\.max_images"):
        images_of(tmp_path, row)
    assert len(images_of(tmp_path, row, most=5)) == 5


def test_images_in_two_columns_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"images and image both have images; keep one .*rename_columns: \{image: null\}"
    ):
        images_of(tmp_path, {"image": RED, "images": [BLUE]})
    assert len(images_of(tmp_path, {"image": RED, "images": []})) == 1


def test_marks_are_as_many_as_images_or_none() -> None:
    mark_count("a:1", "prompt", ["look at <image> and <image>"], 2)
    mark_count("a:1", "prompt", ["look"], 2)
    mark_count("a:1", "texts", ["<image> one", "<image> two"], 2)
    with pytest.raises(
        DataError, match=r"a:1: prompt: 1 <image> mark for 2 images; write one mark for each image, or none"
    ):
        mark_count("a:1", "prompt", ["<image> look"], 2)
    with pytest.raises(DataError, match=r"a:1: prompt: 2 <image> marks for 0 images"):
        mark_count("a:1", "prompt", ["<image><image>"], 0)


def test_a_cache_that_cannot_be_written_is_named_with_its_field(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder belongs")
    with pytest.raises(DataError, match=r"cannot be written to .*; name another folder as `image_cache`"):
        images_of(tmp_path, {"image": RED})


def test_the_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "rewards-as-services" / "images"
