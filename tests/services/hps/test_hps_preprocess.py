"""Geometry, modes and resize of the preprocessing, against numbers worked out by hand and a second resize."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.hps_reference import prepare
from services.hps.preprocess import MEAN, STD, preprocess

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


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (2, 2), (255, 0, 0, 51)), (1, 0.8, 0.8)),
        (Image.fromarray(np.full((2, 2), 25_700, np.uint16)), (100 / 255, 100 / 255, 100 / 255)),  # 16 bits: 100 * 257
    ],
    ids=["RGBA", "16-bit grey"],
)
def test_other_modes_are_seen_as_rgb_on_white(image: Image.Image, expected: tuple[float, float, float]) -> None:
    assert raw(image)[:, 100, 100].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_given_image_is_not_changed() -> None:
    image = noise(30, 20)
    before = image.tobytes()
    preprocess(image, 224, CPU)
    assert image.tobytes() == before
