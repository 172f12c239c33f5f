"""Where the tokens of a row lie: time, row and column, and which image each belongs to. Axes: T tokens of a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def places_of(ids_T: Tensor, grids: Sequence[tuple[int, int]], image_id: int) -> tuple[Tensor, Tensor]:
    """Places (3, T) and images (T,) of a row's tokens.

    Text goes on along time, at row and column 0. All tokens of an image share one time, the next one, and have their rows and
    columns; the text behind goes on from there.

    Args:
        grids: rows and columns of tokens of each image, in order.
        image_id: the id that stands for an image's token; each image's tokens stand together.

    Returns:
        places: int64.
        images: int64, number of each token's image from 1; 0 for text.

    Raises:
        ValueError: the images have another number of tokens than there are places for them.
    """
    is_image_T = ids_T == image_id
    before_T = torch.cat([torch.zeros(1, dtype=torch.bool), is_image_T[:-1]])
    starts_T = is_image_T & ~before_T
    steps_T = (~is_image_T | starts_T).long()  # an image takes one step, with its first token
    images_T = torch.where(is_image_T, starts_T.long().cumsum(0), 0)
    runs = torch.bincount(images_T[is_image_T], minlength=1)[1:].tolist()
    if runs != [rows * columns for rows, columns in grids]:
        raise ValueError(
            f"the images have {[rows * columns for rows, columns in grids]} tokens, the text has places for {runs}"
        )
    places_3T = torch.zeros(3, len(ids_T), dtype=torch.int64)
    places_3T[0] = steps_T.cumsum(0) - 1
    if grids:
        places_3T[1:, is_image_T] = torch.cat([_grid(*grid) for grid in grids], 1)
    return places_3T, images_T


def _grid(rows: int, columns: int) -> Tensor:
    """(2, rows * columns): row and column of each token, row by row."""
    return torch.stack([torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)])
