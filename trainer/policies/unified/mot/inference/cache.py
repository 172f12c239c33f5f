"""What a context has left behind in every layer, so that it is read once: a noised image never changes it, and a text that is
written only adds to it.

Axes: B rows, L places of the longest context, H heads of queries, K heads of keys, D numbers of a head, U and G tokens of the two
kinds, N latent tokens of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from machine.transfers import numbers
from trainer.policies.unified.attends import Attends, Pair

_ROOM = 64  # places that are added to a cache at a time


@dataclass(frozen=True)
class Cache:
    """Contexts of B rows.

    Attributes:
        keys, values: of each layer (B, L, K, D).
        there_BL: bool: the place is one of the row's.
        position_B: int64, the rotary position that comes next.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    there_BL: Tensor
    position_B: Tensor

    def __len__(self) -> int:
        return len(self.position_B)

    def first(self, count: int) -> Cache:
        """The first rows alone."""
        if count == len(self):
            return self
        keys, values = ([each[:count] for each in layers] for layers in (self.keys, self.values))
        return Cache(keys, values, self.there_BL[:count], self.position_B[:count])

    def repeated(self, count: int) -> Cache:
        """Each row so many times, side by side."""
        keys, values = ([each.repeat_interleave(count, 0) for each in layers] for layers in (self.keys, self.values))
        return Cache(
            keys, values, self.there_BL.repeat_interleave(count, 0), self.position_B.repeat_interleave(count, 0)
        )


class Keeping:
    """Implements `Attends`: another one, and keeps what its layers' keys and values were.

    Args:
        counts: of each row: tokens of the first kind, of the second. None of them is noised, so that all are seen later on.
    """

    def __init__(self, inner: Attends, counts: Sequence[tuple[int, int]]) -> None:
        self._inner, self._counts = inner, counts
        self._kept: dict[int, tuple[Pair, Pair]] = {}

    def __call__(self, layer: int, q: Pair, k: Pair, v: Pair) -> Pair:
        self._kept[layer] = k, v
        return self._inner(layer, q, k, v)

    def cache(self, position_B: Tensor) -> Cache:
        """What was kept, row by row."""
        keys, values = ([self._by_row(kept[n]) for _, kept in sorted(self._kept.items())] for n in (0, 1))
        lengths_B = numbers((sum(row) for row in self._counts), position_B.device)
        there_BL = torch.arange(keys[0].shape[1], device=position_B.device) < lengths_B[:, None]
        return Cache(keys, values, there_BL, position_B)

    def _by_row(self, pair: Pair) -> Tensor:
        kinds = [each.split([row[kind] for row in self._counts]) for kind, each in enumerate(pair)]
        return pad_sequence([torch.cat(row) for row in zip(*kinds, strict=True)], batch_first=True)


class OnCanvas:
    """Implements `Attends` for an image of each row: its tags and latents see the row's context and one another.

    Args:
        cache: the contexts.
        tags, latents: tokens of an image, of the first kind and of the second.
    """

    def __init__(self, cache: Cache, tags: int, latents: int) -> None:
        self._cache, self._counts = cache, (tags, latents)
        own = cache.there_BL.new_ones(len(cache), tags + latents)
        self._mask = torch.cat([cache.there_BL, own], dim=1)[:, None, None, :]

    def __call__(self, layer: int, q: Pair, k: Pair, v: Pair) -> Pair:
        keys = torch.cat([self._cache.keys[layer], self._rows(k)], dim=1)
        values = torch.cat([self._cache.values[layer], self._rows(v)], dim=1)
        out = attended(self._rows(q), keys, values, self._mask)
        tags, latents = out.split(self._counts, dim=1)
        return tags.flatten(0, 1), latents.flatten(0, 1)

    def _rows(self, pair: Pair) -> Tensor:
        return torch.cat([each.unflatten(0, (len(self._cache), -1)) for each in pair], dim=1)


class Writing:
    """Implements `Attends` for one word of each row after another: a word sees the context, the words before it and itself.

    `next` is called before each word.
    """

    def __init__(self, cache: Cache) -> None:
        self._keys, self._values = list(cache.keys), list(cache.values)
        self._there, self._used = cache.there_BL, cache.there_BL.shape[1]
        self._mask = self._there

    def next(self) -> None:
        """Make place for a word of each row."""
        if self._used == self._there.shape[1]:
            self._there = functional.pad(self._there, (0, _ROOM))
            self._keys, self._values = (
                [functional.pad(each, (0, 0, 0, 0, 0, _ROOM)) for each in layers]
                for layers in (self._keys, self._values)
            )
        self._there[:, self._used] = True
        self._used += 1
        self._mask = self._there[:, None, None, : self._used]

    def __call__(self, layer: int, q: Pair, k: Pair, v: Pair) -> Pair:
        keys, values, last = self._keys[layer], self._values[layer], self._used - 1
        keys[:, last], values[:, last] = k[0], v[0]
        out = attended(q[0][:, None], keys[:, : self._used], values[:, : self._used], self._mask)
        return out[:, 0], q[1]  # no latents: as many as there were


def attended(q_BNHD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, mask: Tensor) -> Tensor:
    """Attention (B, N, H, D), whose heads of keys are shared by equal numbers of those of queries."""
    heads = (each.transpose(1, 2) for each in (q_BNHD, k_BLKD, v_BLKD))
    attention: Callable[..., Tensor] = functional.scaled_dot_product_attention
    return attention(*heads, attn_mask=mask, enable_gqa=q_BNHD.shape[2] != k_BLKD.shape[2]).transpose(1, 2)
