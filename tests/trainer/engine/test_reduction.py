"""Gradients are added up over the ranks while the last backward goes on: what is sent, when, and that nothing else changes.

The other rank is played: it sends what this one sends. tests/trainer/engine/test_engines.py has real ranks.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.config import OptimConfig
from trainer.engine import reduction
from trainer.engine.local import LocalEngine
from trainer.engine.reduction import GradientSum
from trainer.processes.distributed import World

TWO = World(rank=0, size=2, device=torch.device("cpu"))


class Sent:
    """A message on its way: added up only when it is waited for, so that who reads too early reads a wrong sum."""

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat

    def wait(self) -> None:
        self.flat.mul_(2)


class Net(nn.Module):
    """Three layers in a row, beside one that is used now and then and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.sometimes, self.never = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, *, uses: bool = False) -> Tensor:
        x = self.third(self.second(self.first(x)).tanh())
        return (self.sometimes(x) if uses else x).square().sum()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the messages."""
    found: list[int] = []

    def all_reduce(flat: Tensor, *, async_op: bool) -> Any:
        assert async_op
        found.append(flat.numel())
        return Sent(flat)

    monkeypatch.setattr(reduction.dist, "all_reduce", all_reduce)
    return found


def make() -> Net:
    torch.manual_seed(0)
    return Net()


def batches() -> list[Tensor]:
    return list(torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("bucket_bytes", [1, 100, 1 << 20])
def test_the_sums_are_those_of_one_message_after_the_pass(sent: list[int], bucket_bytes: int) -> None:
    """Bit for bit, and a parameter that no rank had a gradient for has none, whatever the buckets are."""
    net, plain = make(), make()
    total = GradientSum(list(net.parameters()), TWO, bucket_bytes=bucket_bytes)
    for _ in range(2):  # the second step as the first
        for module in (net, plain):
            module.zero_grad()
        total.forget()
        for number, batch in enumerate(batches()):
            plain(batch, uses=number == 0).backward()
            if number < 2:
                net(batch, uses=number == 0).backward()
                assert not sent, "nothing is sent before the last pass"
                continue
            with total.last_pass():
                net(batch).backward()
        total.finish()
        for (name, ours), theirs in zip(net.named_parameters(), plain.parameters(), strict=True):
            if name.startswith("never"):
                assert ours.grad is None and theirs.grad is None
            else:
                assert ours.grad is not None and theirs.grad is not None
                assert ours.grad.equal(2 * theirs.grad), name
        assert sum(sent) == sum(p.numel() + 1 for p in net.parameters())
        sent.clear()


def test_a_bucket_is_sent_while_the_pass_goes_on(sent: list[int]) -> None:
    """From the last layer to the first: when the first layer's gradient is made, the others' are on their way."""
    net = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    at_the_first: list[int] = []
    net[0].weight.register_hook(lambda _: at_the_first.extend(sent))
    total = GradientSum(list(net.parameters()), TWO, bucket_bytes=1)
    with total.last_pass():
        net(torch.ones(1, 4)).sum().backward()
    assert at_the_first == [17, 17] and sent == [17, 17, 17]


def test_all_is_sent_when_the_pass_ends_and_nothing_later(sent: list[int]) -> None:
    """What ranks do after the pass they do in one order: a bucket that one rank's pass did not fill may not come later there."""
    net = make()
    total = GradientSum(list(net.parameters()), TWO, bucket_bytes=1)
    with total.last_pass():
        net(batches()[0]).backward()
    count = len(sent)
    total.finish()
    assert len(sent) == count == len(list(net.parameters()))


def test_a_step_that_was_given_up_leaves_nothing_behind(sent: list[int]) -> None:
    engine = LocalEngine(net := make(), OptimConfig(lr=0.1), TWO)
    grads = []
    for _ in range(2):
        engine.zero_grad()
        engine.backward(net(batches()[0]), last=True)
        engine._sum.finish() if grads else None
        grads.append(net.first.weight.grad)
    assert grads[0] is not None and grads[1] is not None
    plain = make()
    plain(batches()[0]).backward()
    assert plain.first.weight.grad is not None and grads[1].equal(2 * plain.first.weight.grad)


def test_one_rank_sends_nothing(sent: list[int]) -> None:
    net = make()
    total = GradientSum(list(net.parameters()), World(rank=0, size=1, device=torch.device("cpu")))
    with total.last_pass():
        net(batches()[0]).backward()
    total.finish()
    assert not sent and net.first.weight.grad is not None
