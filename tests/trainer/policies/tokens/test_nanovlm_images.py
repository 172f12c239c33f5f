"""How nanoVLM cuts images and writes their places into a prompt, by numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import nanovlm_reference as reference
from trainer.config.nanovlm import NanoVlmConfig
from trainer.policies.tokens.nanovlm.images import image_text, read_tiles, tiled_size

TILE = "<|image|>" * 4


@pytest.mark.parametrize(
    ("height", "width", "to_longest", "expected"),
    [
        (24, 24, False, (24, 24)),
        (1, 1, False, (24, 24)),
        (25, 10, False, (48, 24)),  # 48 / 25 x 10 = 19.2, up to a tile
        (30, 40, False, (48, 48)),  # 48 / 40 x 30 = 36, up to two tiles
        (400, 100, False, (72, 24)),  # no longer than max_img_size
        (100, 400, False, (24, 72)),
        (24, 24, True, (72, 72)),
        (10, 40, True, (24, 72)),
    ],
)
def test_an_image_is_brought_to_whole_tiles(
    height: int, width: int, to_longest: bool, expected: tuple[int, int]
) -> None:
    assert tiled_size(height, width, reference.settings(resize_to_max_side_len=to_longest)) == expected


def test_tiles_are_cut_row_by_row_behind_a_view_of_the_whole() -> None:
    pixels = np.zeros((48, 72, 3), np.uint8)
    for row in range(2):
        for column in range(3):
            pixels[24 * row : 24 * row + 24, 24 * column : 24 * column + 24] = 10 * (3 * row + column + 1)
    tiles, grid = read_tiles(Image.fromarray(pixels), reference.settings())
    assert grid == (2, 3) and tiles.shape == (7, 3, 24, 24)
    for number in range(6):
        assert torch.equal(tiles[1 + number], torch.full((3, 24, 24), 10 * (number + 1) / 255))
    # A third of the width each: 8 columns of the view are one tile, blended with its neighbours at the border alone.
    assert torch.allclose(tiles[0, :, :10, 1:6], torch.tensor(10 / 255))
    assert torch.allclose(tiles[0, :, 14:, 18:23], torch.tensor(60 / 255))


def test_values_are_from_0_to_1_without_mean_and_deviation() -> None:
    white, grid = read_tiles(Image.new("L", (24, 24), 255), reference.settings())
    assert grid == (1, 1) and torch.equal(white, torch.ones(1, 3, 24, 24))


def test_a_black_image_is_no_padding() -> None:
    black, _ = read_tiles(Image.new("RGB", (72, 24)), reference.settings())
    assert len(black) == 4 and all(bool(tile.any()) for tile in black) and float(black.max()) < 1e-29
    assert all(bool(tile.any()) for tile in black.bfloat16())


def test_the_text_of_an_image() -> None:
    config = reference.settings()
    assert image_text((1, 1), config) == "<|global_image|>" + TILE
    assert image_text((1, 2), config, 0) == (f"<image: 0><|global_image|>{TILE}<row_1_col_1>{TILE}<row_1_col_2>{TILE}")
    without = reference.settings(vlm_extra_tokens={"image_token": "<|image|>", "r1c1": "<a>"})
    assert image_text((1, 1), without) == f"<a>{TILE}"
    with pytest.raises(ValueError, match=r"row 1, column 2, but vlm_extra_tokens has no r1c2; lower max_img_size"):
        image_text((1, 2), without)


def test_a_tile_of_nanovlm_230m_has_64_tokens_and_8_by_8_tags() -> None:
    config = NanoVlmConfig(max_img_size=2048)
    assert config.mp_image_token_length == 64 and config.patches_a_side == 32
    assert len(config.vlm_extra_tokens) == config.extra_token_amount == 66
    text = image_text((4, 4), config)
    assert text.count("<|image|>") == 17 * 64 and text.endswith("<row_4_col_4>" + "<|image|>" * 64)
