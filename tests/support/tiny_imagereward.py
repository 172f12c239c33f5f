"""A small random ImageReward file in the published layout, and its score computed a second time in plain arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

VISION, TEXT, INNER, PATCH, SIZE, LAYERS, CONTEXT = 128, 64, 96, 8, 32, 2, 35
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog", "two", "##s", "of", "photo"]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """Of the published layout; pixels, tokens, words and features."""

    vision: int = VISION
    text: int = TEXT
    vision_inner: int = INNER
    text_inner: int = INNER
    patch: int = PATCH
    side: int = SIZE
    vision_layers: int = LAYERS
    text_layers: int = LAYERS
    words: int = len(WORDS) + 2
    positions: int = 64
    head: tuple[int, ...] = (24, 16, 8, 4)


SMALL = Size()
PUBLISHED = Size(1024, 768, 4096, 3072, 16, 224, 24, 12, 30_524, 512, (1024, 128, 64, 16))  # BLIP-L, 224 pixels


def write_vocabulary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def random_state(seed: int, size: Size = SMALL) -> State:
    """Every key of ImageReward.pt, those that the score does not use included."""
    vision, width = size.vision, size.text
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.empty(shape).normal_(0, std, generator=generator)

    def linear(name: str, rows: int, columns: int) -> State:
        return {f"{name}.weight": normal(rows, columns, std=columns**-0.5), f"{name}.bias": normal(rows, std=0.1)}

    def norm(name: str, width: int) -> State:
        return {f"{name}.weight": 1 + normal(width, std=0.1), f"{name}.bias": normal(width, std=0.1)}

    eye, mind = "blip.visual_encoder", "blip.text_encoder"
    state: State = {
        f"{eye}.cls_token": normal(1, 1, vision, std=0.5),
        f"{eye}.pos_embed": normal(1, (size.side // size.patch) ** 2 + 1, vision, std=0.5),
        f"{eye}.patch_embed.proj.weight": normal(vision, 3, size.patch, size.patch, std=1 / size.patch),
        f"{eye}.patch_embed.proj.bias": normal(vision, std=0.1),
        **norm(f"{eye}.norm", vision),
        f"{mind}.embeddings.word_embeddings.weight": normal(size.words, width, std=1),
        f"{mind}.embeddings.position_embeddings.weight": normal(size.positions, width, std=0.5),
        f"{mind}.embeddings.position_ids": torch.arange(size.positions)[None],
        **norm(f"{mind}.embeddings.LayerNorm", width),
        **linear("blip.vision_proj", 8, vision),
        **linear("blip.text_proj", 8, width),
    }
    for number in range(size.vision_layers):
        block = f"{eye}.blocks.{number}"
        state |= norm(f"{block}.norm1", vision) | norm(f"{block}.norm2", vision)
        state |= linear(f"{block}.attn.qkv", 3 * vision, vision) | linear(f"{block}.attn.proj", vision, vision)
        state |= linear(f"{block}.mlp.fc1", size.vision_inner, vision)
        state |= linear(f"{block}.mlp.fc2", vision, size.vision_inner)
    for number in range(size.text_layers):
        layer = f"{mind}.encoder.layer.{number}"
        for part, given in (("attention", width), ("crossattention", vision)):
            state |= linear(f"{layer}.{part}.self.query", width, width)
            state |= linear(f"{layer}.{part}.self.key", width, given) | linear(
                f"{layer}.{part}.self.value", width, given
            )
            state |= linear(f"{layer}.{part}.output.dense", width, width)
            state |= norm(f"{layer}.{part}.output.LayerNorm", width)
        state |= linear(f"{layer}.intermediate.dense", size.text_inner, width)
        state |= linear(f"{layer}.output.dense", width, size.text_inner)
        state |= norm(f"{layer}.output.LayerNorm", width)
    sizes = [width, *size.head, 1]
    for number, (given, made) in zip((0, 2, 4, 6, 7), itertools.pairwise(sizes), strict=True):
        state |= linear(f"mlp.layers.{number}", made, given)
    return state


def plain_score(state: State, image: Image.Image, ids: Sequence[int]) -> float:
    """The published score of an RGB image and a row of token ids, without padding. Heads are 64 wide."""
    seen = _look(state, _pixels(image))
    name = "blip.text_encoder.embeddings"
    x = state[f"{name}.word_embeddings.weight"][list(ids)] + state[f"{name}.position_embeddings.weight"][: len(ids)]
    x = _norm(state, f"{name}.LayerNorm", x, 1e-12)
    for number in range(LAYERS):
        layer = f"blip.text_encoder.encoder.layer.{number}"
        for part, keys in (("attention", None), ("crossattention", seen)):
            q = _linear(state, f"{layer}.{part}.self.query", x)
            k, v = (_linear(state, f"{layer}.{part}.self.{n}", x if keys is None else keys) for n in ("key", "value"))
            y = _linear(state, f"{layer}.{part}.output.dense", _attend(q, k, v))
            x = _norm(state, f"{layer}.{part}.output.LayerNorm", x + y, 1e-12)
        y = torch.nn.functional.gelu(_linear(state, f"{layer}.intermediate.dense", x))
        x = _norm(state, f"{layer}.output.LayerNorm", x + _linear(state, f"{layer}.output.dense", y), 1e-12)
    row = x[0]
    for number in (0, 2, 4, 6, 7):
        row = _linear(state, f"mlp.layers.{number}", row)
    return (float(row) - 0.16717362830052426) / 1.0333394966054072


def _look(state: State, pixels: Tensor) -> Tensor:
    name, grid = "blip.visual_encoder", SIZE // PATCH
    rows = pixels.reshape(3, grid, PATCH, grid, PATCH).permute(1, 3, 0, 2, 4).reshape(grid * grid, -1)
    kernel = state[f"{name}.patch_embed.proj.weight"]
    rows = rows @ kernel.reshape(VISION, -1).T + state[f"{name}.patch_embed.proj.bias"]
    x = torch.cat([state[f"{name}.cls_token"][0], rows]) + state[f"{name}.pos_embed"][0]
    for number in range(LAYERS):
        block = f"{name}.blocks.{number}"
        q, k, v = _linear(state, f"{block}.attn.qkv", _norm(state, f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + _linear(state, f"{block}.attn.proj", _attend(q, k, v))
        y = torch.nn.functional.gelu(_linear(state, f"{block}.mlp.fc1", _norm(state, f"{block}.norm2", x, 1e-6)))
        x = x + _linear(state, f"{block}.mlp.fc2", y)
    return _norm(state, f"{name}.norm", x, 1e-6)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (each.reshape(len(each), -1, 64) for each in (q, k, v))
    weights = (torch.einsum("qhd,khd->hqk", q, k) / 8).softmax(-1)  # 8 is the root of a head's 64 features
    return torch.einsum("hqk,khd->qhd", weights, v).reshape(len(q), -1)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    root = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return centred / root * state[f"{name}.weight"] + state[f"{name}.bias"]


def _pixels(image: Image.Image) -> Tensor:
    """As torchvision's Resize and CenterCrop with Pillow's cubic."""
    short = min(image.size)
    width, height = (int(SIZE * side / short) for side in image.size)
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    top, left = round((height - SIZE) / 2.0), round((width - SIZE) / 2.0)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    return torch.from_numpy((scaled[top : top + SIZE, left : left + SIZE] - mean) / std).permute(2, 0, 1)
