"""HPSv2's score computed a second time, as open_clip computes it, from the published checkpoint's own keys.

Plain tensor arithmetic that shares nothing with `services.hps`: no transformers, no conversion, its own resize. The
tests compare the service with it on small random weights, `benchmarks/hps_parity.py` on a full ViT-H-14.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

State = dict[str, Tensor]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Tower:
    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Size:
    """Of an open_clip ViT; pixels, tokens and features."""

    vision: Tower
    text: Tower
    image_size: int = 224
    patch: int = 14
    context: int = 77
    vocabulary: int = 49_408
    projection: int = 1024


VIT_H_14 = Size(Tower(1280, 32, 16), Tower(1024, 24, 16))
SMALL = Size(Tower(128, 3, 2), Tower(64, 2, 1), image_size=56, projection=32)


def random_checkpoint(size: Size, seed: int) -> State:
    """Random weights under the keys of `HPS_v2_compressed.pt`, float32, with activations of ordinary size."""
    generator = torch.Generator().manual_seed(seed)
    v, t, e = size.vision.width, size.text.width, size.projection

    def normal(*shape: int, std: float) -> Tensor:
        return torch.empty(shape).normal_(0, std, generator=generator)

    def norm(name: str, width: int) -> State:
        return {f"{name}.weight": 1 + normal(width, std=0.1), f"{name}.bias": normal(width, std=0.1)}

    patches = (size.image_size // size.patch) ** 2
    state = {
        "positional_embedding": normal(size.context, t, std=0.3),
        "text_projection": normal(t, e, std=t**-0.5),
        "logit_scale": torch.tensor(math.log(100)),
        "visual.class_embedding": normal(v, std=0.3),
        "visual.positional_embedding": normal(patches + 1, v, std=0.3),
        "visual.proj": normal(v, e, std=v**-0.5),
        "visual.conv1.weight": normal(v, 3, size.patch, size.patch, std=1 / size.patch),
        "token_embedding.weight": normal(size.vocabulary, t, std=1),
        **norm("visual.ln_pre", v),
        **norm("visual.ln_post", v),
        **norm("ln_final", t),
    }
    for name, tower in (("visual.transformer", size.vision), ("transformer", size.text)):
        for number in range(tower.layers):
            width, block = tower.width, f"{name}.resblocks.{number}"
            state |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
            for part, rows, columns in (
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            ):
                state[f"{block}.{part}weight"] = normal(rows, columns, std=columns**-0.5)
                state[f"{block}.{part}bias"] = normal(rows, std=0.1)
    return state


def score(state: State, size: Size, image: Image.Image, ids: Sequence[int]) -> float:
    """The cosine for an RGB image and a row of token ids."""
    a = image_features(state, size, prepare(image, size.image_size))
    b = text_features(state, size, torch.tensor(ids))
    return float((a / a.norm()) @ (b / b.norm()))


def prepare(image: Image.Image, size: int) -> Tensor:
    """[3, size, size]: longest side to `size` with an antialiased cubic, black around it, normalised. In float64."""
    pixels = np.asarray(image, np.float64) / 255
    height, width = (max(round(side * size / max(image.size)), 1) for side in pixels.shape[:2])
    down, across = _cubic(pixels.shape[0], height), _cubic(pixels.shape[1], width)
    scaled = np.einsum("hy,yxc,wx->chw", down, pixels, across, optimize=True)
    canvas = np.zeros((3, size, size))
    top, left = (size - height) // 2, (size - width) // 2
    canvas[:, top : top + height, left : left + width] = scaled
    normalised = (canvas - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    return torch.from_numpy(normalised).float()


def image_features(state: State, size: Size, pixels: Tensor) -> Tensor:
    """[projection], not normalised."""
    weight, grid = state["visual.conv1.weight"].float(), size.image_size // size.patch
    # A convolution whose stride is its kernel is one matrix product over the patches.
    patches = pixels.reshape(3, grid, size.patch, grid, size.patch).permute(1, 3, 0, 2, 4).reshape(grid * grid, -1)
    x = torch.cat([state["visual.class_embedding"].float()[None], patches @ weight.reshape(len(weight), -1).T])
    x = _norm(x + state["visual.positional_embedding"].float(), state, "visual.ln_pre")
    x = _blocks(x, state, "visual.transformer", size.vision, mask=None)
    return _norm(x[0], state, "visual.ln_post") @ state["visual.proj"].float()


def text_features(state: State, size: Size, ids: Tensor) -> Tensor:
    """[projection], not normalised; pooled at the highest id, which is the end token."""
    x = state["token_embedding.weight"][ids].float() + state["positional_embedding"].float()
    mask = torch.full((len(ids), len(ids)), -math.inf).triu(1)
    x = _norm(_blocks(x, state, "transformer", size.text, mask), state, "ln_final")
    return x[ids.argmax()] @ state["text_projection"].float()


def _blocks(x: Tensor, state: State, name: str, tower: Tower, mask: Tensor | None) -> Tensor:
    """Pre-norm residual blocks over [L, width]."""
    for number in range(tower.layers):
        block = f"{name}.resblocks.{number}"
        x = x + _attention(_norm(x, state, f"{block}.ln_1"), state, f"{block}.attn", tower.heads, mask)
        inner = _linear(_norm(x, state, f"{block}.ln_2"), state, f"{block}.mlp.c_fc.")
        x = x + _linear(inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))), state, f"{block}.mlp.c_proj.")
    return x


def _attention(x: Tensor, state: State, name: str, heads: int, mask: Tensor | None) -> Tensor:
    length, width = x.shape
    q, k, v = _linear(x, state, f"{name}.in_proj_").reshape(length, 3, heads, width // heads).permute(1, 2, 0, 3)
    logits = q @ k.transpose(1, 2) / math.sqrt(width // heads)
    weights = (logits if mask is None else logits + mask).softmax(-1)
    return _linear((weights @ v).transpose(0, 1).reshape(length, width), state, f"{name}.out_proj.")


def _linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}weight"].float().T + state[f"{name}bias"].float()


def _norm(x: Tensor, state: State, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"].float() + state[f"{name}.bias"].float()


def _cubic(source: int, target: int) -> np.ndarray:
    """[target, source]: Keys' cubic with a = -0.5, widened by the scale when shrinking, rows summing to 1."""
    scale = source / target
    stretch = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs((np.arange(source) + 0.5)[None] - centres[:, None]) / stretch
    a = -0.5
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)
