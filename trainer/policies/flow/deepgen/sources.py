"""Source images of an editing prompt: read, brought to a size, and seen by Qwen's vision tower.

Axes: H, W pixels; N patches of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from trainer.policies.flow.frozen import fitted
from wire.images import read_picture

SIDE_MULTIPLE = 32  # pixels; 28 of them, two patches of 14, are one token of the vision tower
_TOWER_SCALE = 28 / 32
# CLIP's statistics, with which Qwen's vision tower was trained.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def read_source(path: str | Path, area: int) -> Tensor:
    """An upright image (H, W, 3), uint8, of about `area` pixels, its sides multiples of 32, little distorted.

    Raises OSError or ValueError naming a file that is cut off.
    """
    rgb = read_picture(Path(path)).convert("RGB")
    width, height = fitted(rgb.size, area, SIDE_MULTIPLE)
    pixels = bytearray(rgb.resize((width, height), Image.Resampling.BICUBIC).tobytes())
    return torch.frombuffer(pixels, dtype=torch.uint8).view(height, width, 3)


def look(lmm: Any, sources: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """What the vision tower of a Qwen2_5_VLModel sees in images (H, W, 3), uint8, at 28/32 of their size.

    Returns (tokens, hidden) of each, and the grids int64 (images, 3): frames (1), rows and columns of patches.
    """
    patches, grids = zip(*(_patches(source, lmm.config.vision_config) for source in sources), strict=True)
    grid = torch.tensor(grids, device=lmm.device)
    seen = lmm.get_image_features(torch.cat(patches).to(lmm.device, lmm.dtype), grid)
    return list(seen.pooler_output), grid


def _patches(source_HWC: Tensor, config: Any) -> tuple[Tensor, tuple[int, int, int]]:
    """An image as the vision tower takes it: (N, 3 * frames * patch * patch), neighbours that it merges side by side."""
    patch, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    pixels = (source_HWC.float() / 255 - torch.tensor(_MEAN)) / torch.tensor(_STD)
    small = functional.interpolate(pixels.permute(2, 0, 1)[None], scale_factor=_TOWER_SCALE, mode="bilinear")[0]
    rows, columns = (side // patch for side in small.shape[1:])
    cells = small.view(3, rows // merge, merge, patch, columns // merge, merge, patch)
    flat = cells.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, 3, 1, patch, patch)
    return flat.expand(-1, -1, frames, -1, -1).reshape(rows * columns, -1), (1, rows, columns)
