"""Who sees whom in a pack, by one rule for every model, and three ways to compute it.

A token q sees a token k of the same row when k is not noised and does not come later, or when both belong to the same block.
A block is an image: its tokens see each other in both directions. A noised block is seen by nobody else, so that several noised
copies share a row's context and nothing learns from what it will not have when it draws.

Axes: N tokens of a pack, H heads, D numbers of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Way = Literal["dense", "rows", "flex"]


@dataclass(frozen=True)
class Layout:
    """The place of each token of a pack, int64 (N,) but for `noised_N`.

    Attributes:
        row_N: number of its row, from 0, not falling.
        order_N: its place in the row: a token sees what is not later. Tokens of a row may stand in any order.
        block_N: number of its image, unique in the pack; 0 for text.
        noised_N: bool: it belongs to a noised image, with the tokens that frame it.
    """

    row_N: Tensor
    order_N: Tensor
    block_N: Tensor
    noised_N: Tensor

    def __len__(self) -> int:
        return len(self.row_N)

    @cached_property
    def row_slices(self) -> list[slice]:
        """Where each row lies."""
        ends = torch.unique_consecutive(self.row_N, return_counts=True)[1].cumsum(0).tolist()
        return [slice(first, last) for first, last in pairwise([0, *ends])]

    @cached_property
    def dense_NN(self) -> Tensor:
        """bool (N, N): whether the token of the row sees that of the column."""
        places = torch.arange(len(self), device=self.row_N.device)
        return sees(self, places[:, None], places[None, :])

    @cached_property
    def dense_by_row(self) -> list[Tensor]:
        """The same, cut to each row by itself."""
        places = torch.arange(len(self), device=self.row_N.device)
        return [sees(self, places[each, None], places[None, each]) for each in self.row_slices]

    @cached_property
    def blocks(self) -> BlockMask:
        """The same in blocks of tokens, of which those that nobody sees are skipped, and those that all see need no mask."""

        def seen(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return sees(self, q, k)

        on_gpu = self.row_N.is_cuda  # compiled there: else all N x N pairs would be in memory at once
        device = str(self.row_N.device)
        return create_block_mask(seen, None, None, len(self), len(self), device=device, _compile=on_gpu)


def sees(layout: Layout, q: Tensor, k: Tensor) -> Tensor:
    """Whether the tokens at places q see those at places k: bool, in the shape that the two broadcast to."""
    same_row = layout.row_N[q] == layout.row_N[k]
    earlier = (layout.order_N[k] <= layout.order_N[q]) & ~layout.noised_N[k]
    same_image = (layout.block_N[q] == layout.block_N[k]) & (layout.block_N[q] > 0)
    return same_row & (earlier | same_image)


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, way: Way, scale: float | None = None) -> Tensor:
    """Attention of a pack: (H, N, D) for q (H, N, D) and k, v (H or fewer, N, D), whose heads are shared by equal numbers of
    those of q.

    Args:
        way: `dense` masks all N x N; `rows` attends each row by itself, so that the cost grows with the rows' lengths and not with
            the pack's; `flex` compiles a kernel that skips blocks nobody sees, on a GPU (elsewhere torch computes all N x N).
        scale: of the logits; None is 1 / sqrt(D).
    """
    grouped = q.shape[0] != k.shape[0]
    if not len(layout):
        return q + 0 * (k.sum() + v.sum())  # of an empty pack, with gradients of 0
    if way == "dense":
        return _masked(q, k, v, layout.dense_NN, grouped, scale)
    if way == "rows":
        rows = zip(layout.row_slices, layout.dense_by_row, strict=True)
        return torch.cat([_masked(q[:, r], k[:, r], v[:, r], mask, grouped, scale) for r, mask in rows], dim=1)
    run: Any = _compiled_flex() if q.is_cuda else flex_attention
    out: Tensor = run(q[None], k[None], v[None], block_mask=layout.blocks, scale=scale, enable_gqa=grouped)
    return out[0]


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    """The kernel, compiled at its first call; again for a second length of packs, and then for any."""
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, grouped: bool, scale: float | None) -> Tensor:
    out: Callable[..., Tensor] = functional.scaled_dot_product_attention
    return out(q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=grouped)[0]
