"""Rows side by side as the network reads them, and who sees whom among them.

Axes: U tokens of words and seen images, G latent tokens, N = U + G, T predicted words, L noised latent tokens, C numbers of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from machine.transfers import numbers, sent
from trainer.policies.base import PackOutput
from trainer.policies.unified.attends import Pair
from trainer.policies.unified.attention import Layout, Way, attend
from trainer.policies.unified.mot.codec import Codec
from trainer.policies.unified.mot.geometry import COLOURS, Geometry
from trainer.policies.unified.mot.lay import LaidRow
from trainer.policies.unified.mot.network import MotNetwork, Tokens
from trainer.policies.unified.mot.vision import places, to_patches


@dataclass(frozen=True)
class Pack:
    """What the network reads of some rows, and what its answers are compared with.

    Attributes:
        attends: who sees whom.
        asked_T: where, among the first kind of tokens, words are predicted.
        targets_T: the ids of these words.
        drawn_L: which latent tokens are noised, in rising order.
        drawn_I: which images these are.
        velocity_L: (L, C), noise - data of these.
    """

    tokens: Tokens
    attends: RowAttention
    asked_T: Tensor
    targets_T: Tensor
    drawn_L: Tensor
    drawn_I: Tensor
    velocity_L: Tensor


class RowAttention:
    """Implements `Attends` for rows side by side: brings the two kinds of tokens together row by row, and apart again.

    Args:
        layout: of all tokens, each row's words and patches before its latents.
        counts: of each row: tokens of the first kind, of the second.
    """

    def __init__(self, layout: Layout, counts: Sequence[tuple[int, int]], way: Way) -> None:
        self.layout, self.way = layout, way
        self._counts = counts

    def __call__(self, layer: int, q: Pair, k: Pair, v: Pair) -> Pair:
        all_q, all_k, all_v = (self._together(pair).transpose(0, 1) for pair in (q, k, v))
        out = attend(all_q, all_k, all_v, self.layout, self.way).transpose(0, 1)
        pieces = out.split([count for row in self._counts for count in row])
        return torch.cat([*pieces[0::2], out[:0]]), torch.cat([*pieces[1::2], out[:0]])

    def _together(self, pair: Pair) -> Tensor:
        if not self._counts:
            return torch.cat(pair)
        kinds = (each.split([row[kind] for row in self._counts]) for kind, each in enumerate(pair))
        return torch.cat([piece for row in zip(*kinds, strict=True) for piece in row])


def pack_rows(rows: Sequence[LaidRow], codec: Codec, geometry: Geometry, device: torch.device, way: Way) -> Pack:
    """Rows as one sequence, images encoded."""
    clean = [_data_of(row, codec) for row in rows]
    noises = [each.noise for row in rows for each in row.latents]
    data = [clean[number][each.source] for number, row in enumerate(rows) for each in row.latents]
    levels = [each.level for row in rows for each in row.latents]
    lengths = [len(each) for each in data]
    empty = torch.zeros(0, geometry.token_channels, device=device)
    noised, velocity = [empty], [empty]
    for level, x0, noise in zip(levels, data, noises, strict=True):
        if noise is None:
            noised.append(x0)
            continue
        eps, data_there = sent(noise, device), sent(x0, device)
        noised.append((1 - level) * data_there + level * eps)
        velocity.append(eps - data_there)
    drawn = [number for number, noise in enumerate(noises) if noise is not None]
    image_G = torch.arange(len(levels)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    position_I = torch.tensor([each.position for row in rows for each in row.latents], dtype=torch.int64)
    tokens = Tokens(
        words_T=numbers((word for row in rows for word in row.words), device),
        **_seen(rows, geometry, device),
        order_U=numbers(_orders(rows), device),
        positions_U=numbers((token[1] for row in rows for token in row.und), device),
        latents=torch.cat(noised),
        latent_places_G=sent(_latent_places(rows, geometry), device),
        image_G=sent(image_G, device),
        levels_I=sent(torch.tensor(levels, dtype=torch.float32), device),
        positions_G=sent(position_I[image_G], device),
    )
    counts = [(len(row.und), row.num_latents) for row in rows]
    firsts = [sum(first for first, _ in counts[:number]) for number in range(len(rows))]
    return Pack(
        tokens,
        RowAttention(layout_of(rows, device), counts, way),
        asked_T=numbers(
            (first + place for first, row in zip(firsts, rows, strict=True) for place, _ in row.asked), device
        ),
        targets_T=numbers((word for row in rows for _, word in row.asked), device),
        drawn_L=sent(torch.isin(image_G, torch.tensor(drawn, dtype=torch.int64)).nonzero()[:, 0], device),
        drawn_I=numbers(drawn, device),
        velocity_L=torch.cat(velocity),
    )


def read_pack(network: MotNetwork, given: Pack) -> PackOutput:
    """Errors of the predicted words and of the velocities of noised latents."""
    und, gen = network(given.tokens, given.attends)
    logits = network.logits(und[given.asked_T]).float()
    cross_entropy_T = functional.cross_entropy(logits, given.targets_T, reduction="none")
    error = network.velocity(gen.index_select(0, given.drawn_L)) - given.velocity_L
    return PackOutput(cross_entropy_T, (error**2).mean(1))


def layout_of(rows: Sequence[LaidRow], device: torch.device) -> Layout:
    """The place of each token: row by row, words and patches before latents."""
    places_N: list[tuple[int, int, int, bool]] = []
    blocks = 0
    for number, row in enumerate(rows):
        used = [0]
        for _, _, order, block, noised in row.und:
            places_N.append((number, order, block + blocks if block else 0, noised))
            used.append(block)
        for each in row.latents:
            places_N += [(number, each.order, each.block + blocks, each.noise is not None)] * row.tokens_of(each)
        blocks += max(used)
    table = sent(torch.tensor(places_N, dtype=torch.int64).reshape(-1, 4), device)
    return Layout(table[:, 0], table[:, 1], table[:, 2], table[:, 3].bool())


def _data_of(row: LaidRow, codec: Codec) -> list[Tensor]:
    """Clean latent tokens of each image that latents are made of, float32; zeros for a canvas, which is pure noise."""
    channels = codec.channels * codec.latent_patch**2
    return [
        torch.zeros(height * width, channels)
        if pixels is None
        else to_patches(codec.encode(pixels[None])[0], codec.latent_patch)
        for pixels, (height, width) in zip(row.drawn_from, row.sizes, strict=True)
    ]


def _latent_places(rows: Sequence[LaidRow], geometry: Geometry) -> Tensor:
    """Of each latent token, in the table of places."""
    side, spread = geometry.max_latent_size, geometry.interpolated
    found = [places(*row.sizes[each.source], side, spread=spread) for row in rows for each in row.latents]
    return torch.cat([_empty(), *found])


def _orders(rows: Sequence[LaidRow]) -> Iterator[int]:
    """Where each token of the first kind is found among all words followed by all patches."""
    words = 0
    patches = sum(len(row.words) for row in rows)
    for row in rows:
        for place, *_ in row.und:
            if place < 0:
                yield patches
                patches += 1
            else:
                yield words + place
        words += len(row.words)


def _seen(rows: Sequence[LaidRow], geometry: Geometry, device: torch.device) -> dict[str, Any]:
    patch = geometry.vision.patch_size
    images = [pixels for row in rows for pixels in row.seen]
    cut = [to_patches(sent(pixels, device).permute(2, 0, 1), patch) for pixels in images]
    where = [
        places(p.shape[0] // patch, p.shape[1] // patch, geometry.vision.side, spread=geometry.interpolated)
        for p in images
    ]
    none = torch.zeros(0, patch * patch * COLOURS, dtype=torch.uint8, device=device)
    return {
        "patches": torch.cat([none, *cut]).float() / 127.5 - 1,  # mean and spread 0.5, as published
        "patch_places_V": sent(torch.cat([_empty(), *where]), device),
        "patch_lengths": [len(each) for each in cut],
    }


def _empty() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)
