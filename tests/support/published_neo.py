"""NEO's network once more, from descriptions, as formulas over a file's tensors: no class of the trainer, rotations as complex numbers,
attention over the whole mask, images cut by loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor

State = dict[str, Tensor]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def logits(
    state: State,
    tokens: Sequence[int | Image.Image],
    *,
    patch: int,
    heads: int,
    shared_heads: int,
    theta: float,
    theta_hw: float,
    theta_vision: float,
    eps: float,
) -> Tensor:
    """(N, vocabulary) of a row: ids of words, and images as they are, which are cut into tokens of 2 x 2 patches."""
    embedding = state["language_model.model.embed_tokens.weight"]
    x, places, images = [], [], []
    for time, token in enumerate(tokens):
        if isinstance(token, int):
            x.append(embedding[token])
            places.append((time, 0, 0))
            images.append(0)
        else:
            rows, columns = (side // (2 * patch) for side in (token.height, token.width))
            x += list(_image(state, token, patch, theta_vision))
            places += [(time, row, column) for row in range(rows) for column in range(columns)]
            images += [time + 1] * (rows * columns)
    order = torch.arange(len(x))
    image = torch.tensor(images)
    seen_NN = (order[None] <= order[:, None]) | ((image[None] == image[:, None]) & (image[None] > 0))
    hidden = torch.stack(x)
    layers = {name.split(".")[3] for name in state if name.startswith("language_model.model.layers.")}
    for number in sorted(map(int, layers)):
        name = f"language_model.model.layers.{number}."
        normed = _rms(hidden, state[f"{name}input_layernorm.weight"], eps)
        q, k = (
            _turned(state, name, part, normed, count, torch.tensor(places), (theta, theta_hw, theta_hw), eps)
            for part, count in (("q", heads), ("k", shared_heads))
        )
        v = (normed @ state[f"{name}self_attn.v_proj.weight"].T).unflatten(1, (shared_heads, -1))
        k, v = (each.repeat_interleave(heads // shared_heads, 1) for each in (k, v))
        weights = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(
            v.shape[-1]
        )  # of a head, not of what lies beside one another
        weights = torch.softmax(weights.masked_fill(~seen_NN, -math.inf), -1)
        out = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
        hidden = hidden + out @ state[f"{name}self_attn.o_proj.weight"].T
        inner = _rms(hidden, state[f"{name}post_attention_layernorm.weight"], eps)
        gate, up = (inner @ state[f"{name}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        hidden = hidden + (gate * torch.sigmoid(gate) * up) @ state[f"{name}mlp.down_proj.weight"].T
    return _rms(hidden, state["language_model.model.norm.weight"], eps) @ state["language_model.lm_head.weight"].T


def split(tokens: Sequence[int], image_id: int, images: Sequence[Image.Image]) -> list[int | Image.Image]:
    """Ids with the image in place of each run of those that stand for one."""
    waiting, found = iter(images), list[int | Image.Image]()
    for is_image, run in groupby(tokens, lambda token: token == image_id):
        found += [next(waiting)] if is_image else list(run)
    return found


def _turned(
    state: State, name: str, part: str, x: Tensor, count: int, places: Tensor, thetas: tuple[float, ...], eps: float
) -> Tensor:
    """Queries or keys (N, heads, 2 D): along time, rows and columns, each normed and turned by itself."""
    time = (x @ state[f"{name}self_attn.{part}_proj.weight"].T).unflatten(1, (count, -1))
    both = (x @ state[f"{name}self_attn.{part}_proj_hw.weight"].T).unflatten(1, (count, -1))
    found = []
    for axis, (piece, norm) in enumerate(zip((time, *both.chunk(2, -1)), ("", "_h", "_w"), strict=True)):
        normed = _rms(piece, state[f"{name}self_attn.{part}_norm{norm}.weight"], eps)
        half = normed.shape[-1] // 2
        angle = places[:, axis, None] * torch.tensor([thetas[axis] ** (-n / half) for n in range(half)])
        turned = torch.complex(*normed.chunk(2, -1)) * torch.polar(torch.ones(1), angle)[:, None]
        found += [turned.real, turned.imag]
    return torch.cat(found, -1)


def _image(state: State, image: Image.Image, patch: int, theta: float) -> Tensor:
    """(tokens, d): patches, GELU, turned by column and row in neighbouring pairs, then 2 x 2 of them by a convolution."""
    pixels = torch.from_numpy(np.array(image)).float() / 255
    pixels = ((pixels - MEAN) / STD).permute(2, 0, 1)
    root = "vision_model.embeddings."
    features = torch.nn.functional.conv2d(
        pixels[None], state[f"{root}patch_embedding.weight"], state[f"{root}patch_embedding.bias"], stride=patch
    )[0]
    features = 0.5 * features * (1 + torch.erf(features / math.sqrt(2)))
    width = len(features)
    turned = torch.zeros_like(features)
    for row in range(features.shape[1]):
        for column in range(features.shape[2]):
            for first, place in ((0, column), (width // 2, row)):
                own = features[first : first + width // 2, row, column].reshape(-1, 2)
                rates = torch.tensor([theta ** (-2 * n / (width // 2)) for n in range(len(own))])
                moved = torch.view_as_complex(own.contiguous()) * torch.polar(torch.ones(len(own)), place * rates)
                turned[first : first + width // 2, row, column] = torch.view_as_real(moved).flatten()
    tokens = torch.nn.functional.conv2d(
        turned[None], state[f"{root}dense_embedding.weight"], state[f"{root}dense_embedding.bias"], stride=2
    )[0]
    return tokens.flatten(1).T


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
