"""How nanoVLM reads an image: brought to whole tiles, cut, and a small view of all of it in front."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from trainer.config.nanovlm import NanoVlmConfig

Grid = tuple[int, int]  # rows and columns of tiles

# Idefics3 takes a tile of zeros for padding and drops it. One number this small changes no output, and black is kept.
_NOT_PADDING = 1e-30


def tiled_size(height: int, width: int, settings: NanoVlmConfig) -> tuple[int, int]:
    """Height and width in pixels that an image is brought to, both multiples of a tile's side.

    The long side becomes the next multiple, at most `max_img_size` (with `resize_to_max_side_len` exactly that); the short
    side follows in proportion and is rounded up, so an image is never narrower than its proportions.
    """
    tile, longest = settings.vit_img_size, settings.max_img_size
    long, short = max(height, width), min(height, width)
    new_long = longest if settings.resize_to_max_side_len else min(longest, math.ceil(long / tile) * tile)
    new_short = max(math.ceil(short * (new_long / long) / tile) * tile, tile)
    return (new_short, new_long) if width >= height else (new_long, new_short)


def read_tiles(image: Image.Image, settings: NanoVlmConfig) -> tuple[Tensor, Grid]:
    """An image as nanoVLM's vision encoder takes it.

    Returns:
        tiles: float32 (n, 3, side, side), values 0 to 1 without mean and standard deviation, row by row; where there are
            several, the whole image in the size of a tile comes first.
        grid: rows and columns.
    """
    height, width = tiled_size(image.height, image.width, settings)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
    side = settings.vit_img_size
    rows, columns = height // side, width // side
    tiles = pixels.reshape(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(rows * columns, 3, side, side)
    if rows * columns > 1:
        view = functional.interpolate(
            pixels[None], size=(side, side), mode="bilinear", align_corners=False, antialias=True
        )
        tiles = torch.cat([view, tiles])
    return _kept(tiles.contiguous()), (rows, columns)


def _kept(tiles: Tensor) -> Tensor:
    for tile in tiles:
        if not bool(tile.any()):
            tile[0, 0, 0] = _NOT_PADDING
    return tiles


def image_text(grid: Grid, settings: NanoVlmConfig, number: int | None = None) -> str:
    """What stands in a prompt for an image: tags, and `mp_image_token_length` image tokens a tile.

    Args:
        number: its place among several images, from 0; None where it is the only one.

    Raises:
        ValueError: the image has more tiles than the settings have tags for.
    """
    tokens = settings.vlm_extra_tokens
    tile = tokens["image_token"] * settings.mp_image_token_length
    text = "" if number is None else f"<image: {number}>"
    if "global_image_token" in tokens:
        text += tokens["global_image_token"] + tile
        if grid == (1, 1):
            return text  # a single tile is its own view of the whole
    for row in range(1, grid[0] + 1):
        for column in range(1, grid[1] + 1):
            text += _tag(tokens, row, column) + tile
    return text


def _tag(tokens: dict[str, str], row: int, column: int) -> str:
    name = f"r{row}c{column}"
    if name not in tokens:
        raise ValueError(
            f"an image has a tile in row {row}, column {column}, but vlm_extra_tokens has no {name}; lower max_img_size or add "
            f"the token"
        )
    return tokens[name]
