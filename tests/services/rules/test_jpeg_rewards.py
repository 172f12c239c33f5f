"""JPEG compressibility and incompressibility: minus and plus the kilobytes at quality 95."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.kit.scorer import Failure, Item, Score
from services.rules.jpeg import jpeg_compressibility, jpeg_incompressibility
from services.rules.lengths import Lengths
from services.rules.scorer import builtin_rewards
from wire.schema import ErrorCode


def flat(size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, (200, 30, 30))


def noise(size: tuple[int, int] = (64, 64)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def value(result: object) -> float:
    assert isinstance(result, Score)
    return result.value


def test_score_is_the_file_size_in_units_of_1000_bytes(tmp_path: Path) -> None:
    """DDPO, arXiv 2305.13301, section 5.1: file size after JPEG compression, as cost and as reward."""
    for image in (flat(), noise()):
        image.save(tmp_path / "image.jpg", quality=95)
        size = (tmp_path / "image.jpg").stat().st_size
        item = Item("a", "anything", (image,))
        assert jpeg_incompressibility(item) == Score(size / 1000, details={"bytes": size})
        assert jpeg_compressibility(item) == Score(-size / 1000, details={"bytes": size})


def test_flat_image_compresses_better_than_noise() -> None:
    plain, busy = Item("a", "", (flat(),)), Item("b", "", (noise(),))
    assert value(jpeg_compressibility(plain)) > value(jpeg_compressibility(busy))
    assert value(jpeg_incompressibility(plain)) < value(jpeg_incompressibility(busy))


def test_ranges_are_stated_as_unbounded_on_one_side() -> None:
    ranges = {reward.info.name: reward.info.range for reward in builtin_rewards(Lengths())}
    assert ranges["jpeg_compressibility"] == (None, 0.0)
    assert ranges["jpeg_incompressibility"] == (0.0, None)


def test_transparent_pixels_are_encoded_as_white() -> None:
    hidden = noise().convert("RGBA")
    hidden.putalpha(0)
    white = Image.new("RGB", hidden.size, "white")
    assert jpeg_compressibility(Item("a", "", (hidden,))) == jpeg_compressibility(Item("b", "", (white,)))


@pytest.mark.parametrize("count", [0, 2])
def test_needs_one_image(count: int) -> None:
    result = jpeg_compressibility(Item("a", "", (flat(),) * count, completion="text"))
    assert isinstance(result, Failure)
    assert result.code is ErrorCode.BAD_INPUT
    assert f"`images` has {count}" in result.message
