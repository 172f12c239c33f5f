"""RGB of every mode that a decoded image can have, against colours worked out by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.kit.models.pixels import to_rgb

RED = (255, 0, 0)
WHITE = (255, 255, 255)


def through_png(image: Image.Image, **options: Any) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    opened = Image.open(buffer)
    opened.load()
    return opened


def paletted() -> Image.Image:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, *RED])
    return image


def deep_grey(level: int) -> Image.Image:
    return Image.fromarray(np.full((2, 2), level, np.uint16))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (2, 2), RED), RED),
        (through_png(Image.new("RGB", (2, 2), RED), transparency=RED), WHITE),
        (through_png(Image.new("RGB", (2, 2), RED), transparency=(1, 2, 3)), RED),
        (Image.new("RGBA", (2, 2), (*RED, 255)), RED),
        (Image.new("RGBA", (2, 2), (*RED, 0)), WHITE),
        (Image.new("RGBA", (2, 2), (*RED, 51)), (255, 204, 204)),
        (Image.new("LA", (2, 2), (100, 255)), (100, 100, 100)),
        (Image.new("LA", (2, 2), (100, 0)), WHITE),
        (Image.new("L", (2, 2), 100), (100, 100, 100)),
        (through_png(Image.new("L", (2, 2), 100), transparency=100), WHITE),
        (Image.new("1", (2, 2), 1), WHITE),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), RED),
        (paletted(), RED),
        (through_png(paletted()), RED),
        (through_png(paletted(), transparency=1), WHITE),
        (through_png(deep_grey(25_700)), (100, 100, 100)),  # 100 * 257
        (through_png(deep_grey(65_535)), WHITE),
        (through_png(deep_grey(25_700), transparency=25_700), WHITE),
        (through_png(deep_grey(25_700), transparency=25_701), (100, 100, 100)),
    ],
    ids=lambda value: f"{value.mode} {value.info or ''}" if isinstance(value, Image.Image) else str(value),
)
def test_every_mode_becomes_rgb_on_white(image: Image.Image, expected: tuple[int, int, int]) -> None:
    converted = to_rgb(image)
    assert (converted.mode, converted.size) == ("RGB", (2, 2))
    assert converted.getpixel((1, 1)) == expected


def test_all_levels_of_a_16_bit_grey_keep_their_high_byte() -> None:
    levels = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    converted = np.asarray(to_rgb(Image.fromarray(levels)))
    assert np.array_equal(converted, np.repeat((levels // 256)[:, :, None], 3, axis=2))


def test_rgb_is_not_copied_and_nothing_is_changed() -> None:
    plain = Image.new("RGB", (2, 2), RED)
    assert to_rgb(plain) is plain
    clear = Image.new("RGBA", (2, 2), (*RED, 0))
    to_rgb(clear)
    assert clear.mode == "RGBA" and clear.getpixel((0, 0)) == (*RED, 0)
