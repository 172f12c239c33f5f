"""The moving average moves (the predecessor's never did), swaps in and out, and loads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.update.ema import Ema


def make(value: float) -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def test_update_is_the_weighted_mean() -> None:
    module = make(1.0)
    ema = Ema(module, decay=0.9)
    nn.init.constant_(module.weight, 2.0)
    ema.update()  # 0.9 * 1 + 0.1 * 2
    assert ema.shadow["weight"].item() == pytest.approx(1.1)
    ema.update(decay=0.5)  # 0.5 * 1.1 + 0.5 * 2
    assert ema.shadow["weight"].item() == pytest.approx(1.55)


def test_after_many_updates_it_is_the_closed_form() -> None:
    """ema_k = d^k w_0 + (1 - d) sum_i d^(k - i) w_i."""
    module, decay, weights = make(1.0), 0.8, [0.5, -2.0, 3.0, 0.25, 7.0, -1.5, 4.0]
    ema = Ema(module, decay=decay)
    for weight in weights:
        nn.init.constant_(module.weight, weight)
        ema.update()
    k = len(weights)
    expected = decay**k * 1.0 + (1 - decay) * sum(decay ** (k - i) * w for i, w in enumerate(weights, 1))
    assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_decay_zero_follows_exactly() -> None:
    module = make(1.0)
    ema = Ema(module, decay=0.0)
    nn.init.constant_(module.weight, 0.3)
    ema.update()
    assert torch.equal(ema.shadow["weight"], module.weight)


def test_applied_swaps_in_and_back_even_after_an_error() -> None:
    module = make(1.0)
    ema = Ema(module, decay=0.9)
    nn.init.constant_(module.weight, 3.0)
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        assert module.weight.item() == 1.0
        raise RuntimeError("inside")
    assert module.weight.item() == 3.0
    assert ema.shadow["weight"].item() == 1.0


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Linear(1, 1)
    module.bias.requires_grad_(False)
    ema = Ema(module, decay=0.9)
    assert list(ema.shadow) == ["weight"]


def test_a_checkpoint_without_such_an_average_begins_it_at_the_weight() -> None:
    ema = Ema(make(1.0), decay=0.9, kind="old")
    ema.write("weight", {"weight": torch.full((1, 1), 5.0), "average": torch.zeros(1, 1)})
    assert ema.read("weight")["old"].item() == 5.0 and ema.read("weight", keep=False) == {}


def test_one_average_is_read_whole_and_written_back() -> None:
    ema = Ema(make(1.0), decay=0.9)
    before = ema.read("weight")
    ema.write("weight", {"average": torch.full((1, 1), 4.0), "weight": torch.zeros(1, 1)})
    assert before["average"].item() == 1.0  # a copy
    assert ema.read("weight")["average"].item() == 4.0
    with pytest.raises(ValueError, match=r"weight: the saved average has shape \(2,\), the model's is \(1, 1\)"):
        ema.write("weight", {"average": torch.zeros(2), "weight": torch.zeros(1, 1)})
