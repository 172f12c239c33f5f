"""Rows of tokens with their images, and several of them behind one another as the network takes them.

Axes: T tokens of a row, N of all rows, M patches, I image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from machine.transfers import sent
from trainer.policies.tokens.draw import Reading
from trainer.policies.unified.attention import Layout
from trainer.policies.unified.neo.network import NeoInput
from trainer.policies.unified.neo.places import places_of

# What the processor makes beside ids: numbers and places of patches, and rows and columns of tokens of each image.
PATCHES, PATCH_PLACES, GRIDS = "patches", "patch_places", "grids"


@dataclass(frozen=True, eq=False)
class Row:
    """A row.

    Attributes:
        ids_T: int64.
        places_3T, images_T: as `places_of` gives them.
        patches_MC, patch_places_M2: of its images, in order; no rows without images.
    """

    ids_T: Tensor
    places_3T: Tensor
    images_T: Tensor
    patches_MC: Tensor
    patch_places_M2: Tensor


def row_of(reading: Reading, image_id: int, patch_numbers: int, answer_S: Tensor | None = None) -> Row:
    """A prompt, with an answer behind it.

    Args:
        patch_numbers: C, for prompts without images.
    """
    ids_T = reading.ids_T if answer_S is None else torch.cat([reading.ids_T, answer_S])
    inputs = reading.inputs
    grids = [(int(rows), int(columns)) for rows, columns in inputs[GRIDS].tolist()] if GRIDS in inputs else []
    places_3T, images_T = places_of(ids_T, grids, image_id)
    patches = inputs.get(PATCHES, torch.zeros(0, patch_numbers))
    places = inputs.get(PATCH_PLACES, torch.zeros(0, 2, dtype=torch.int64))
    return Row(ids_T, places_3T, images_T, patches, places)


def packed(rows: Sequence[Row], device: torch.device) -> tuple[NeoInput, Layout]:
    """The rows as one sequence, none of which sees another."""
    lengths = [len(row.ids_T) for row in rows]
    images_N = torch.cat([row.images_T for row in rows])
    counts = [int(row.images_T.max()) if len(row.images_T) else 0 for row in rows]
    before_N = torch.tensor(list(accumulate(counts, initial=0))[:-1]).repeat_interleave(torch.tensor(lengths))
    layout = Layout(
        row_N=sent(torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths)), device),
        order_N=sent(torch.cat([torch.arange(length) for length in lengths]), device),
        block_N=sent(torch.where(images_N > 0, images_N + before_N, 0), device),
        noised_N=torch.zeros(len(images_N), dtype=torch.bool, device=device),
    )
    given = NeoInput(
        ids_N=torch.cat([row.ids_T for row in rows]),
        places_3N=torch.cat([row.places_3T for row in rows], 1),
        image_I=(images_N > 0).nonzero()[:, 0],
        patches_MC=torch.cat([row.patches_MC for row in rows]),
        patch_places_M2=torch.cat([row.patch_places_M2 for row in rows]),
    )
    return given.to(device), layout
