"""On a pretended GPU nothing mixes devices, and what is waited for is known and bounded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.pretended_events import Event, count, lines
from tests.support.pretended_gpu import GPU, pretended_gpu
from tests.support.tiny_updates import ADV, ONES, PROMPTS, make_updater, objective_config, roll_out
from trainer.checkpoint.saver import share
from trainer.config import TinyConfig
from trainer.objectives import Scored, needs_reference
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.flow.tiny import TinyFlow
from trainer.policies.flow.tiny_model import TinyModel
from trainer.processes.distributed import World
from trainer.types import Prompt
from trainer.update.ema import Ema

WORLD = World(rank=0, size=1, device=GPU)


def tiny_policy(*, keep_reference: bool = False) -> FlowPolicy:
    """Random weights, none of them 0, on whatever the device is."""
    torch.manual_seed(0)
    model = TinyModel(TinyConfig(num_layers=1, num_heads=2, head_dim=16))
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return FlowPolicy(TinyFlow(model, GPU, about="random"), keep_reference=keep_reference)


@dataclass(frozen=True)
class Seen:
    """The events of each stage."""

    sample: Sequence[Event]
    update: Sequence[Event]
    ema: Sequence[Event]
    evaluation: Sequence[Event]
    save: Sequence[Event]
    restore: Sequence[Event]
    parameters: int
    kernels: int

    def reads(self) -> dict[str, int]:
        """Forced reads, and uploads that are waited for, of each stage."""
        stages = ("sample", "update", "ema", "evaluation", "save", "restore")
        return {name: count(getattr(self, name), "read") + count(getattr(self, name), "upload") for name in stages}

    def mixings(self) -> dict[str, int]:
        events = [*self.sample, *self.update, *self.ema, *self.evaluation, *self.save, *self.restore]
        return dict(lines(events, "mixing"))


def one_step(
    build: Callable[..., FlowPolicy], objective: str, prompts: Sequence[Prompt] = PROMPTS, **fields: float
) -> Seen:
    """Two micro-batches are sampled and trained on; average, evaluation, a checkpoint's copy and its way back."""
    config = objective_config(objective, **fields)
    with pretended_gpu() as gpu:
        policy = build(keep_reference=needs_reference(config))
        updater = make_updater(policy, world=WORLD, objective=objective, **fields)
        ema = Ema(policy.trainable, 0.9)
        with gpu.during() as sample:
            rollouts = roll_out(policy, objective, 4, prompts=prompts)
        with gpu.during() as update:
            updater.step(Scored(rollouts, ADV, ONES), 0)
        with gpu.during() as moved:
            ema.update()
        with gpu.during() as evaluation, ema.applied():
            list(policy.sample(prompts, 1, range(2), SamplingPlan(4, 2, "flow_sde", 0.0, (), ())))
        with gpu.during() as save:
            kept = share(updater.engine, [updater.engine, ema], WORLD)
        with gpu.during() as restore:
            for name, tensors in kept.items():
                updater.engine.write(name, tensors)
                ema.write(name, tensors)
    return Seen(sample, update, moved, evaluation, save, restore, len(kept), gpu.kernels)


@pytest.mark.parametrize(
    ("objective", "fields", "update"), [("flow_grpo", {"kl_beta": 0.1}, 3), ("diffusion_nft", {}, 3)]
)
def test_the_tiny_policy_waits_where_it_is_known_to(objective: str, fields: dict[str, Any], update: int) -> None:
    seen = one_step(tiny_policy, objective, **fields)
    assert seen.mixings() == {}
    reads = seen.reads()
    assert reads["sample"] <= 2 * 2 + 2  # images of a micro-batch and the clock behind them; two prompts' tokens, once
    assert reads["update"] <= update  # whether the losses are finite, the gradient's norm, the metrics
    assert reads["ema"] == 0
    assert reads["evaluation"] <= 2  # images and the clock
    assert reads["save"] <= 4 * seen.parameters  # weight, two moments, average
    assert reads["restore"] <= 4 * seen.parameters


def test_samples_that_share_noise_are_repeated_without_a_wait() -> None:
    with pretended_gpu() as gpu:
        policy = tiny_policy()
        plan = SamplingPlan(4, 8, "flow_sde", 0.7, (2,), (2,), same_noise=True)
        list(policy.sample(PROMPTS, 4, range(8), plan))
        with gpu.during() as found:
            list(policy.sample(PROMPTS, 4, range(8), plan))
    assert gpu.kernels > 100
    assert [event.what for event in found] == ["cpu", "Event.synchronize"], lines(found)


def _mixed(x: Tensor) -> Tensor:
    return x + torch.ones(3)  # planted: mixing


def _read_in_a_loop(x: Tensor) -> float:
    total = 0.0
    for value in x:
        total += value.item()  # planted: item
    return total


def _copied_back(x: Tensor) -> Tensor:
    return (x * 2).cpu().sum()  # planted: cpu


@pytest.mark.parametrize(
    ("fault", "kind", "times"), [(_mixed, "mixing", 1), (_read_in_a_loop, "read", 3), (_copied_back, "read", 1)]
)
def test_a_planted_fault_is_found_at_its_line(fault: Callable[[Tensor], object], kind: str, times: int) -> None:
    with pretended_gpu() as gpu:
        x = torch.zeros(3, device="cuda")
        fault(x)
    source, start = inspect.getsourcelines(fault)
    line = start + next(n for n, text in enumerate(source) if "planted" in text)
    assert [(event.kind, event.where) for event in gpu.events] == [
        (kind, f"tests/trainer/test_pretended_gpu.py:{line}")
    ] * times


def test_a_fault_in_the_replay_is_found_at_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A velocity that comes back by the CPU waits once a part, twice with its gradient's way back."""
    velocity = TinyFlow.velocity

    def by_the_cpu(self: TinyFlow, network: nn.Module, x: Tensor, *rest: Tensor) -> Tensor:
        return velocity(self, network, x, *rest).cpu().to(x.device, non_blocking=True)  # type: ignore[arg-type]  # planted

    with pretended_gpu() as gpu:
        policy = tiny_policy()
        rollouts = roll_out(policy)
        monkeypatch.setattr(TinyFlow, "velocity", by_the_cpu)
        with gpu.during() as found:
            policy.replay(rollouts[0], policy.parts(rollouts[0])[0])
    line = inspect.getsourcelines(by_the_cpu)[1] + 1
    assert [str(event) for event in found] == [f"read cpu at tests/trainer/test_pretended_gpu.py:{line}"]


def test_what_it_answers_and_what_it_sees() -> None:
    """Devices of results, of gradients and of copies; every kind of wait, one by one."""
    with pretended_gpu() as gpu:
        host, x = torch.arange(3.0), torch.arange(3.0, device="cuda").requires_grad_()
        assert host.device.type == "cpu" and x.device == GPU and x.is_cuda and (x * 2)[1:].device == GPU
        assert torch.zeros_like(x, device="cpu").device.type == "cpu"
        assert host.to(x.device, non_blocking=True).device == GPU and host.pin_memory().device.type == "cpu"
        assert (x * torch.tensor(2.0)).device == GPU, "CUDA takes a number of the CPU"
        (x**2).sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None and x.grad.device == GPU
        assert nn.Linear(3, 2).to(GPU).weight.device == GPU
        assert gpu.events == [Event("upload", "to", gpu.events[0].where)] * 2, "a linear layer's weight and bias"
        waits: dict[str, Callable[[], object]] = {
            "read": lambda: bool(x[0] > 0),
            "read tolist": x.tolist,
            "read nonzero": x.nonzero,
            "read mask": lambda: x[x > 1],
            "read repeats": lambda: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64)),
            "upload": lambda: torch.tensor([1.0], device=GPU),
            "upload list": lambda: x[[0, 1]],
            "upload indices": lambda: x[torch.tensor([0, 1])],
            "upload copy": lambda: torch.empty_like(x).detach().copy_(host),
            "mixing numpy": lambda: x.detach().numpy(),
        }
        for name, ask in waits.items():
            with gpu.during() as found:
                ask()
            assert [event.kind for event in found] == [name.split()[0]], (name, lines(found))
        with gpu.during() as found:
            x.repeat_interleave(2)
            x.repeat_interleave(torch.ones_like(x, dtype=torch.int64), output_size=3)
            x.detach()[0] = 1.0
        assert found == []
