"""Where the tokens of a row lie: time, row and column, and which image each belongs to. Axes: T tokens of a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
    # In numpy: a row's arrays are so short that each of torch's operations would cost more than all of them.
    is_image_T = ids_T.numpy() == image_id
    starts_T = is_image_T.copy()
    starts_T[1:] &= ~is_image_T[:-1]
    images_T = np.where(is_image_T, starts_T.cumsum(), 0)
    runs = np.bincount(images_T[is_image_T], minlength=1)[1:].tolist()
    if runs != [rows * columns for rows, columns in grids]:
        raise ValueError(
            f"the images have {[rows * columns for rows, columns in grids]} tokens, the text has places for {runs}"
        )
    places_3T = np.zeros((3, len(is_image_T)), np.int64)
    places_3T[0] = (~is_image_T | starts_T).cumsum() - 1  # an image takes one step, with its first token
    if grids:
        places_3T[1:, is_image_T] = np.concatenate([_grid(*grid) for grid in grids], 1)
    return torch.from_numpy(places_3T), torch.from_numpy(images_T)


def _grid(rows: int, columns: int) -> np.ndarray:
    """(2, rows * columns): row and column of each token, row by row."""
    return np.stack(np.divmod(np.arange(rows * columns), columns))
