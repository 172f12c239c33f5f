"""Pixels as HPSv2 sees them: the longest side scaled to the model's size, the rest padded, then normalised."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from services.kit.models.pixels import to_rgb

# The published code resizes a float tensor, and torchvision does that with antialiasing since 0.17 and without before.
# This is the newer one, which is also what the word "bicubic" means in Pillow, without its rounding to whole numbers.
# Named in the revision, because a large image scored with another resize has another score.
RESIZE = "bicubic-antialias-float"

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# CUDA's antialiased resize holds a pixel's weights in shared memory and refuses factors from about 47 on.
_LARGEST_FACTOR_ON_GPU = 32


def preprocess(image: Image.Image, size: int, device: torch.device) -> torch.Tensor:
    """[3, size, size], float32, normalised, on `device`, where the arithmetic is done (of huge images on the CPU).

    Any mode and aspect ratio; a side shorter than a pixel after scaling is kept at one. Smaller images are enlarged.
    The padding is black, centred (an odd pixel goes right or below), and there before normalising. Source:
    HPSv2's `ResizeMaxSize`, which fails for an image of `size` x less and for alpha; here both are scored.
    """
    workplace = device if max(image.size) <= _LARGEST_FACTOR_ON_GPU * size else torch.device("cpu")
    pixels = torch.from_numpy(np.array(to_rgb(image))).to(workplace)
    planes = pixels.permute(2, 0, 1).float().div_(255)
    scale = size / max(image.size)
    height, width = (max(round(side * scale), 1) for side in (image.height, image.width))
    if (height, width) != (image.height, image.width):
        planes = functional.interpolate(planes[None], (height, width), mode="bicubic", antialias=True)[0]
    left, top = (size - width) // 2, (size - height) // 2
    planes = functional.pad(planes, (left, size - width - left, top, size - height - top))
    mean, std = (torch.tensor(values, device=workplace)[:, None, None] for values in (MEAN, STD))
    return planes.sub_(mean).div_(std).to(device)
