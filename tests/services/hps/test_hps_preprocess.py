"""Geometry, modes and resize of the preprocessing, against numbers worked out by hand and a second resize."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.hps_reference import prepare
from services.hps.preprocess import MEAN, STD, preprocess, to_rgb

CPU = torch.device("cpu")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 3), np.uint8)
    )


def raw(image: Image.Image, size: int = 224) -> torch.Tensor:
    """What `preprocess` made, before the normalisation: 0 to 1, beyond where the cubic overshoots."""
    return preprocess(image, size, CPU) * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


@pytest.mark.parametrize(
    ("size", "left", "top", "right", "bottom"),
    [
        ((448, 448), 0, 0, 224, 224),
        ((448, 224), 0, 56, 224, 168),
        ((100, 400), 84, 0, 140, 224),
        ((224, 112), 0, 56, 224, 168),  # the published code leaves this one 112 high and fails
        ((300, 299), 0, 0, 224, 223),  # the odd line goes below
        ((1, 1), 0, 0, 224, 224),
        ((1000, 1), 0, 111, 224, 112),  # 0.224 lines are kept as one
        ((50, 25), 0, 56, 224, 168),  # enlarged
    ],
)
def test_the_longest_side_fills_the_square_and_black_surrounds_it(
    size: tuple[int, int], left: int, top: int, right: int, bottom: int
) -> None:
    planes = raw(Image.new("RGB", size, "white"))
    expected = torch.zeros(3, 224, 224)
    expected[:, top:bottom, left:right] = 1
    torch.testing.assert_close(planes, expected, atol=1e-6, rtol=0)


def test_padding_is_black_before_normalising() -> None:
    corner = preprocess(Image.new("RGB", (2, 1), "white"), 224, CPU)[:, 0, 0]
    expected = [-0.48145466 / 0.26862954, -0.4578275 / 0.26130258, -0.40821073 / 0.27577711]
    assert corner.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [(224, 224), (512, 512), (640, 200), (130, 1024), (97, 61), (3, 2), (1, 1), (8000, 3)])
def test_the_resize_is_the_antialiased_cubic(size: tuple[int, int]) -> None:
    image = noise(*size)
    torch.testing.assert_close(preprocess(image, 224, CPU), prepare(image, 224), atol=1e-4, rtol=0)


def test_the_resize_is_near_pillows_but_keeps_fractions() -> None:
    """Pillow rounds to whole levels, twice, and clips in between."""
    image = noise(512, 512)
    ours = raw(image) * 255
    pillow = torch.from_numpy(np.array(image.resize((224, 224), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    assert (ours.clamp(0, 255) - pillow).abs().mean() < 0.4
    assert not torch.equal(ours, ours.round())


RED = (255, 0, 0)


def through_png(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    opened = Image.open(buffer)
    opened.load()
    return opened


def paletted() -> Image.Image:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, *RED])
    return image


def paletted_transparent() -> Image.Image:
    image = paletted()
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (2, 2), RED), RED),
        (Image.new("RGBA", (2, 2), (*RED, 255)), RED),
        (Image.new("RGBA", (2, 2), (*RED, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (*RED, 51)), (255, 204, 204)),
        (Image.new("LA", (2, 2), (100, 255)), (100, 100, 100)),
        (Image.new("LA", (2, 2), (100, 0)), (255, 255, 255)),
        (Image.new("L", (2, 2), 100), (100, 100, 100)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), RED),
        (paletted(), RED),
        (through_png(paletted()), RED),
        (through_png(paletted_transparent()), (255, 255, 255)),
        (through_png(Image.fromarray(np.full((2, 2), 25_700, np.uint16))), (100, 100, 100)),  # 16 bits: 100 * 257
        (through_png(Image.fromarray(np.full((2, 2), 65_535, np.uint16))), (255, 255, 255)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_every_mode_becomes_rgb_on_white(image: Image.Image, expected: tuple[int, int, int]) -> None:
    converted = to_rgb(image)
    assert (converted.mode, converted.size) == ("RGB", (2, 2))
    assert converted.getpixel((1, 1)) == expected
    assert raw(image)[:, 100, 100].tolist() == pytest.approx([part / 255 for part in expected], abs=1e-5)


def test_the_given_image_is_not_changed() -> None:
    image = noise(30, 20)
    before = image.tobytes()
    preprocess(image, 224, CPU)
    assert image.tobytes() == before
