"""Muon on many matrices at once is torch's, matrix by matrix."""

from __future__ import annotations

import pytest
import torch

from trainer.engine import muon


def matrices(seed: int) -> list[torch.nn.Parameter]:
    """Of four shapes, some of them several times."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(16, 16), (16, 40), (40, 16), (16, 16), (8, 8), (16, 40), (16, 16)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("together", [1 << 22, 300], ids=["all at once", "one or a few"])
def test_it_steps_as_torchs_own(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(muon, "_TOGETHER", together)
    ours, theirs = matrices(0), matrices(0)
    start = matrices(0)
    settings = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = muon.Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for step in range(3):
        for mine, other, gradient in zip(ours, theirs, matrices(step + 1), strict=True):
            mine.grad, other.grad = gradient.detach().clone(), gradient.detach().clone()
        ours[4].grad = theirs[4].grad = None  # what no loss reached is left alone
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        moved = (mine - before).norm()
        assert (mine - other).norm() <= 0.02 * moved, "but for the rounding of bfloat16"
        assert mine is ours[4] or moved > 0.1
    for mine, other in zip(ours, theirs, strict=True):
        state, wanted = (optimizer.state[each] for optimizer, each in zip(optimizers, (mine, other), strict=True))
        assert state.keys() == wanted.keys()
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, wanted[name])


def test_what_comes_out_is_about_orthogonal() -> None:
    made = muon.orthogonal(
        torch.randn(5, 12, 20, generator=torch.Generator().manual_seed(0)), (3.4445, -4.775, 2.0315), 5, 1e-7
    )
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.5 and values.max() < 1.3
