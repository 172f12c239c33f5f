"""Rows attended together are what the whole mask says, whatever their lengths; the work grows with the rows, not with the pack."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.policies.unified.attention import SHORT, Layout, attend


def layout_of(lengths: list[int], *, images: bool = True) -> Layout:
    """Rows of these lengths; each has an image in its middle, every other one a noised image at its end."""
    rows, orders, blocks, noised = [], [], [], []
    for row, length in enumerate(lengths):
        row_N, order_N = torch.full((length,), row), torch.arange(length)
        block_N, noised_N = torch.zeros(length, dtype=torch.int64), torch.zeros(length, dtype=torch.bool)
        if images and length > 8:
            block_N[2:5] = 2 * row + 1
            if row % 2:
                block_N[-3:], noised_N[-3:] = 2 * row + 2, True
        rows.append(row_N)
        orders.append(order_N)
        blocks.append(block_N)
        noised.append(noised_N)
    return Layout(*(torch.cat(each) for each in (rows, orders, blocks, noised)))


def heads(count: int, tokens: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, tokens, width, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("lengths", [[5], [9, 9, 9], [3, 90, 12, 70, 1, 88, 64, 200]], ids=str)
@pytest.mark.parametrize(("keys", "values"), [(4, 8), (2, 8), (2, 4)], ids=["own", "shared", "narrow"])
def test_rows_are_attended_as_the_whole_mask_says(lengths: list[int], keys: int, values: int) -> None:
    layout, total = layout_of(lengths), sum(lengths)
    found = []
    for way in ("dense", "rows"):
        q, k, v = heads(4, total, 8, 0), heads(keys, total, 8, 1), heads(keys, total, values, 2)
        out = attend(q, k, v, layout, way, scale=0.4)
        assert out.shape == (4, total, values)
        out.square().sum().backward()
        found.append((out, q.grad, k.grad, v.grad))
    for dense, rows in zip(*found, strict=True):
        torch.testing.assert_close(rows, dense, atol=1e-5, rtol=1e-4)


def test_padding_is_bounded_by_the_rows() -> None:
    lengths = [2000, 1500, 1400, 900, 64, 60, 3, 1]
    batches = layout_of(lengths).batches
    assert [each.places_RL.shape for each in batches] == [(2, 2000), (1, 1400), (1, 900), (4, 64)]
    work = sum(each.seen_RLL.numel() for each in batches)
    assert work <= sum(max(length, SHORT) ** 2 / 0.75**2 for length in lengths)
    assert sum(int(each.inside_RL.sum()) for each in batches) == sum(lengths)
