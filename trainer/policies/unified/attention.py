"""Who sees whom in a pack, by one rule for every model, and three ways to compute it.

A token q sees a token k of the same row when k is not noised and does not come later, or when both belong to the same block.
A block is an image: its tokens see each other in both directions. A noised block is seen by nobody else, so that several noised
copies share a row's context and nothing learns from what it will not have when it draws.

Axes: N tokens of a pack, H heads, D numbers of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128  # tokens a side of what flex attention computes or skips

Way = Literal["dense", "rows", "flex"]

# Rows are attended together where the shorter has so much of the longest's length, or where all are short: then a call costs more
# than what it computes.
LEAST_FILLED = 0.75
SHORT = 64


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
    def blocks(self) -> BlockMask:
        """The same in blocks of tokens, of which those that nobody sees are skipped, and those that all see need no mask."""

        def seen(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return sees(self, q, k)

        some, all_of_it = _seen_blocks(self)
        masked = _listed(some & ~all_of_it)
        whole = _listed(all_of_it)
        length = len(self)
        return BlockMask.from_kv_blocks(*masked, *whole, BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=(length, length))

    @cached_property
    def batches(self) -> list[RowBatch]:
        """The rows, those of about one length together."""
        lengths = [each.stop - each.start for each in self.row_slices]
        groups: list[list[int]] = []
        for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
            longest = lengths[groups[-1][0]] if groups else 0
            if groups and (longest <= SHORT or lengths[row] >= LEAST_FILLED * longest):
                groups[-1].append(row)
            else:
                groups.append([row])
        return [RowBatch.of(self, [self.row_slices[row] for row in group]) for group in groups]

    @cached_property
    def order_of_batches(self) -> Tensor:
        """Where each token of the pack lies among those of all batches behind one another."""
        return torch.cat([each.places_RL[each.inside_RL] for each in self.batches]).argsort()


@dataclass(frozen=True)
class RowBatch:
    """Rows of about one length beside one another: R rows of L tokens, with padding behind the shorter ones.

    Attributes:
        places_RL: int64, each token's place in the pack; padding repeats its row's last token.
        inside_RL: bool: where there is a token.
        seen_RLL: bool: whether the token of the second axis sees that of the third; padding sees itself.
    """

    places_RL: Tensor
    inside_RL: Tensor
    seen_RLL: Tensor

    @staticmethod
    def of(layout: Layout, rows: Sequence[slice]) -> RowBatch:
        device = layout.row_N.device
        first_R1, last_R1 = (
            torch.tensor(ends, device=device)[:, None]
            for ends in ([each.start for each in rows], [each.stop - 1 for each in rows])
        )
        longest = max(each.stop - each.start for each in rows)
        unbounded_RL = first_R1 + torch.arange(longest, device=device)
        inside_RL, places_RL = unbounded_RL <= last_R1, unbounded_RL.minimum(last_R1)
        seen_RLL = sees(layout, places_RL[:, :, None], places_RL[:, None, :]) & inside_RL[:, None, :]
        return RowBatch(places_RL, inside_RL, seen_RLL | torch.eye(longest, dtype=torch.bool, device=device))


def _seen_blocks(layout: Layout) -> tuple[Tensor, Tensor]:
    """For each pair of blocks, bool: whether any token of the first sees any of the second, and whether all see all. One block after
    another: all pairs of tokens are never in memory together."""
    length = len(layout)
    count = -(-length // BLOCK)
    places = torch.arange(count * BLOCK, device=layout.row_N.device)
    inside, places = places < length, places.clamp(max=length - 1)
    some, every = [], []
    for q, there in zip(places.split(BLOCK), inside.split(BLOCK), strict=True):
        seen = sees(layout, q[:, None], places[None, :]) & there[:, None] & inside[None, :]
        by_block = seen.unflatten(1, (count, BLOCK))
        some.append(by_block.any(2).any(0))
        every.append(by_block.all(2).all(0))
    return torch.stack(some), torch.stack(every)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row of blocks has, and which, these first, as flex attention reads them: int32, with axes for batch and heads."""
    numbers = blocks.sum(1).int()
    order = blocks.int().argsort(dim=1, descending=True, stable=True).int()
    return numbers[None, None], order[None, None]


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
        way: `dense` masks all N x N; `rows` attends rows of about one length together, so that the cost grows with the rows' lengths
            and not with the pack's; `flex` compiles a kernel that skips blocks nobody sees, on a
            GPU (elsewhere torch computes all N x N).
        scale: of the logits; None is 1 / sqrt(D).
    """
    grouped = q.shape[0] != k.shape[0]
    if not len(layout):
        return q[..., : v.shape[-1]] + 0 * (k.sum() + v.sum())  # of an empty pack, with gradients of 0
    if way == "dense":
        return _masked(q, k, v, layout.dense_NN, grouped, scale)
    if way == "rows":
        found = [_by_rows(q, k, v, batch, grouped, scale) for batch in layout.batches]
        return torch.cat(found, dim=1).index_select(1, layout.order_of_batches)
    run: Any = _compiled_flex() if q.is_cuda else flex_attention
    out: Tensor = run(q[None], k[None], v[None], block_mask=layout.blocks, scale=scale, enable_gqa=grouped)
    return out[0]


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    """The kernel, compiled at its first call; again for a second length of packs, and then for any."""
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


def _by_rows(q: Tensor, k: Tensor, v: Tensor, batch: RowBatch, grouped: bool, scale: float | None) -> Tensor:
    """(H, tokens of the batch, D): few large products in place of many small ones."""
    shape, places = batch.places_RL.shape, batch.places_RL.flatten()
    q, k, v = (each.index_select(1, places).unflatten(1, shape).transpose(0, 1) for each in (q, k, v))
    out = _attended(q, k, v, batch.seen_RLL[:, None], grouped, scale)
    return out.transpose(0, 1).flatten(1, 2).index_select(1, batch.inside_RL.flatten().nonzero()[:, 0])


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, grouped: bool, scale: float | None) -> Tensor:
    return _attended(q[None], k[None], v[None], mask, grouped, scale)[0]


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, grouped: bool, scale: float | None) -> Tensor:
    """Values narrower than keys are widened by zeros: else the fast kernels are left for a slow one."""
    width = v.shape[-1]
    v = functional.pad(v, (0, q.shape[-1] - width))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out: Callable[..., Tensor] = functional.scaled_dot_product_attention
    return out(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)[..., :width]
