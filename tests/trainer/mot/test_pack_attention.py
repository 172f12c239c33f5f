"""Who sees whom in a pack: against matrices written by hand, and by every way of computing it alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from trainer.policies.unified.attention import Layout, Way, attend, sees

WAYS: tuple[Way, ...] = ("dense", "rows")


def _layout(*tokens: tuple[int, int, int, bool]) -> Layout:
    numbers = torch.tensor(tokens, dtype=torch.int64)
    return Layout(numbers[:, 0], numbers[:, 1], numbers[:, 2], numbers[:, 3].bool())


def _seen(layout: Layout) -> list[str]:
    return ["".join("x" if each else "." for each in row) for row in layout.dense_NN.tolist()]


def test_texts_are_causal_images_see_themselves_and_noise_is_seen_by_nobody_else() -> None:
    layout = _layout(
        (0, 0, 0, False),  # a word
        (0, 1, 0, False),  # a word
        (0, 2, 1, False),  # a clean image of two tokens
        (0, 2, 1, False),
        (0, 3, 2, True),  # a noised image of two
        (0, 3, 2, True),
        (0, 3, 3, True),  # another copy of it
        (0, 4, 0, False),  # a word behind them
        (1, 0, 0, False),  # another row
    )
    assert _seen(layout) == [
        "x........",
        "xx.......",
        "xxxx.....",
        "xxxx.....",
        "xxxxxx...",
        "xxxxxx...",
        "xxxx..x..",
        "xxxx...x.",
        "........x",
    ]


def test_without_noise_it_is_same_row_and_causal_or_same_image() -> None:
    """As NEO has it: an image's tokens come one after another, and see all of it."""
    layout = _layout((0, 0, 0, False), (0, 1, 1, False), (0, 2, 1, False), (0, 3, 0, False), (1, 0, 0, False))
    assert _seen(layout) == ["x....", "xxx..", "xxx..", "xxxx.", "....x"]


def test_tokens_of_a_row_may_stand_in_any_order() -> None:
    layout = _layout((0, 1, 0, False), (0, 0, 0, False), (0, 2, 1, True))
    assert _seen(layout) == ["xx.", ".x.", "xxx"]


def _random_layout(rows: int, generator: torch.Generator) -> Layout:
    """Rows of texts, clean and noised images, of lengths that fit no block."""
    tokens: list[tuple[int, int, int, bool]] = []
    block = 0
    for number in range(rows):
        order = 0
        for _ in range(4):
            kind = int(torch.randint(3, (), generator=generator))
            length = int(torch.randint(3, 40, (), generator=generator))
            if kind == 0:
                tokens += [(number, order + place, 0, False) for place in range(length)]
                order += length
            else:
                block += 1
                tokens += [(number, order, block, kind == 2)] * length
                order += 1
    return _layout(*tokens)


def _qkv(tokens: int, heads: int, shared: int, generator: torch.Generator) -> list[Tensor]:
    return [
        torch.randn(number, tokens, 16, generator=generator, requires_grad=True) for number in (heads, shared, shared)
    ]


@pytest.mark.parametrize("shared", [4, 2])
def test_rows_by_themselves_are_the_whole_mask_and_have_its_gradients(shared: int) -> None:
    generator = torch.Generator().manual_seed(3)
    layout = _random_layout(5, generator)
    q, k, v = _qkv(len(layout), 4, shared, generator)
    weight = torch.randn(4, len(layout), 16, generator=generator)
    found = []
    for way in WAYS:
        out = attend(q, k, v, layout, way)
        found.append((out, *torch.autograd.grad((out * weight).sum(), (q, k, v))))
    for dense, other in zip(*found, strict=True):
        torch.testing.assert_close(other, dense, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("shared", [4, 2])
def test_flex_is_the_whole_mask(shared: int) -> None:
    """As far as torch has it without a GPU: not compiled, without gradients."""
    generator = torch.Generator().manual_seed(5)
    layout = _random_layout(5, generator)
    q, k, v = (each.detach() for each in _qkv(len(layout), 4, shared, generator))
    flex, dense = (attend(q, k, v, layout, way, 0.3) for way in ("flex", "dense"))
    torch.testing.assert_close(flex, dense, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("way", ["dense", "rows", "flex"])
def test_what_is_noised_changes_nothing_outside_its_block(way: Way) -> None:
    generator = torch.Generator().manual_seed(4)
    layout = _random_layout(3, generator)
    q, k, v = (each.detach() for each in _qkv(len(layout), 2, 2, generator))
    before = attend(q, k, v, layout, way)
    changed = layout.block_N == layout.block_N[layout.noised_N][0]
    k[:, changed] += 1
    v[:, changed] -= 1
    after = attend(q, k, v, layout, way)
    assert torch.equal(before[:, ~changed], after[:, ~changed]), "by exactly 0"
    assert not torch.allclose(before[:, changed], after[:, changed])


def test_blocks_that_nobody_sees_are_skipped() -> None:
    """Of a pack of many rows the blocks that are computed are few: near its diagonal."""
    layout = _layout(*((number, place, 0, False) for number in range(16) for place in range(128)))
    assert layout.blocks.sparsity() > 90
    mixed = _random_layout(9, torch.Generator().manual_seed(6))
    length = len(mixed)
    wanted = create_block_mask(lambda b, h, q, k: sees(mixed, q, k), None, None, length, length, device="cpu")
    for ours, theirs in zip(mixed.blocks.as_tuple(), wanted.as_tuple(), strict=True):
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs), "torch's own way, which has all pairs of tokens in memory"
    some = torch.randint(len(layout), (200,)), torch.randint(len(layout), (200,))
    assert torch.equal(sees(layout, *some), layout.dense_NN[some])


def test_the_cost_of_rows_is_linear_in_the_pack() -> None:
    """Eight times the rows, eight times the work: counted, not timed."""
    work = []
    for rows in (4, 32):
        layout = _layout(*((number, place, 0, False) for number in range(rows) for place in range(32)))
        work.append(sum(batch.seen_RLL.numel() for batch in layout.batches))
    assert work[1] == 8 * work[0]


def test_an_empty_pack_has_gradients() -> None:
    q, k, v = (torch.zeros(2, 0, 8, requires_grad=True) for _ in range(3))
    out = attend(q, k, v, Layout(*(torch.zeros(0, dtype=torch.int64),) * 3, torch.zeros(0, dtype=torch.bool)), "rows")
    out.sum().backward()
    assert out.shape == (2, 0, 8) and all(each.grad is not None for each in (q, k, v))


@pytest.mark.slow
def test_flex_is_traced_for_a_length_for_another_and_then_for_all() -> None:
    """What a GPU compiles, as far as torch traces it without one."""
    traced = torch.compile(flex_attention, backend="eager")
    torch._dynamo.reset()
    counters.clear()
    generator = torch.Generator().manual_seed(0)
    for rows in (3, 5, 6, 8, 4, 9):
        layout = _random_layout(rows, generator)
        q, k, v = (each.detach() for each in _qkv(len(layout), 4, 2, generator))
        out = traced(q[None], k[None], v[None], block_mask=layout.blocks, enable_gqa=True)[0]
        torch.testing.assert_close(out, attend(q, k, v, layout, "dense"), rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] <= 3
