"""FLOPs against counts by hand, phases, and what a real run's rows say of the device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.tiny_updates import WORLD
from tests.support.trainer_runs import run_trainer
from trainer.records.hardware import FlopMeter, Gauges, peak_tflops
from trainer.records.phases import PhaseClock

CPU = torch.device("cpu")


class Block(nn.Module):
    """Attention over T tokens of width D and one head, then a projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        q, k, v = self.qkv(x * scale)[:, None].chunk(3, dim=-1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0])


def by_hand(tokens: int, width: int) -> int:
    """Two FLOPs per multiplication: q, k, v and the projection are 4 T D^2; QK^T and its product with V are 2 T^2 D."""
    return 2 * (4 * tokens * width**2 + 2 * tokens**2 * width)


def test_a_call_without_gradient_counts_once_per_sample() -> None:
    network = Block(8)
    meter = FlopMeter(network, enabled=True)
    with torch.no_grad():
        network(torch.randn(3, 16, 8))
        network(torch.randn(5, 16, 8), scale=0.5)  # not measured again: only the batch differs
        network(torch.randn(1, 4, 8))  # another shape
    assert meter.take() == (8 * by_hand(16, 8) + by_hand(4, 8), 0.0)
    assert meter.take() == (0.0, 0.0)


def test_a_call_with_gradient_counts_two_and_the_trained_share_times() -> None:
    """PaLM (arXiv 2204.02311, appendix B): backward is twice forward. Frozen weights have no gradient to compute."""
    network = Block(8)
    meter = FlopMeter(network, enabled=True)
    network(torch.randn(2, 16, 8)).sum().backward()
    assert meter.take() == (0.0, 3 * 2 * by_hand(16, 8))

    network = Block(8)
    network.qkv.requires_grad_(False)  # three quarters of the weights
    meter = FlopMeter(network, enabled=True)
    network(torch.randn(2, 16, 8))
    assert meter.take() == (0.0, 2.25 * 2 * by_hand(16, 8))


def test_a_call_that_fails_leaves_the_counter_off() -> None:
    network = Block(8)
    meter = FlopMeter(network, enabled=True)
    with pytest.raises(RuntimeError):
        network(torch.randn(2, 16, 7))
    meter.take()
    with torch.no_grad():
        torch.randn(64, 64) @ torch.randn(64, 64)  # no business of the network's
        network(torch.randn(1, 16, 8))
    assert meter.take() == (by_hand(16, 8), 0.0)


def test_a_meter_that_is_off_costs_and_says_nothing() -> None:
    network = Block(8)
    meter = FlopMeter(network, enabled=False)
    network(torch.randn(2, 16, 8))
    assert meter.take() == (0.0, 0.0) and not network._forward_hooks and not network._forward_pre_hooks


def test_the_peak_is_known_given_or_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for name, peak in (
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA H20", 148.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("Something Else", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_tflops(cuda, None) == peak, name
    assert peak_tflops(cuda, 100.0) == 100.0 and peak_tflops(CPU, None) is None and peak_tflops(CPU, 0.5) == 0.5


def test_phases_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 1.0, 4.0, 5.0, 5.5])
    monkeypatch.setattr("trainer.records.phases.time.perf_counter", lambda: next(times))
    clock = PhaseClock(CPU)
    for name in ("encode", "denoise", "encode"):
        with clock.phase(name):
            pass
    assert clock.seconds() == {"encode": 1.5, "denoise": 3.0}


class LateEvent(torch.cuda.Event):
    """Stands in for a CUDA event of a busy device: it is there only once somebody has waited for it."""

    now, waited = 0.0, False

    def __new__(cls, **kwargs: Any) -> LateEvent:
        return object.__new__(cls)

    def __init__(self, **kwargs: Any) -> None:
        self.at, self.there = 0.0, False

    def record(self, stream: Any = None) -> None:
        LateEvent.now += 1500.0
        self.at = LateEvent.now

    def synchronize(self) -> None:
        self.there = True

    def elapsed_time(self, end: Any) -> float:
        if not (end.there or end.at < LateEvent.now):  # what came before the last event is over when that one is
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return float(end.at - self.at)


def test_the_last_phase_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.records.phases.torch.cuda.Event", LateEvent)
    clock = PhaseClock(torch.device("cuda"))
    for name in ("denoise", "decode"):
        with clock.phase(name):
            pass
    assert clock.seconds() == {"denoise": 1.5, "decode": 1.5}


def test_what_was_not_counted_is_no_number() -> None:
    """Layers that are computed by hand pass no call that could be counted; a utilization of 0 would be a lie."""
    network = Block(8)
    gauges = Gauges(network, WORLD, given_peak_tflops=1.0)
    network.out(torch.randn(2, 16, 8))
    assert gauges.metrics(1.0, sampling_s=1.0, sampling_flops=0.0) == {}
    network(torch.randn(2, 16, 8))
    assert gauges.metrics(1.0).keys() == {"perf/mfu_update"}


def test_a_runs_rows_have_phases_and_utilization(recipe: Callable[..., Path], tmp_path: Path) -> None:
    config = recipe("run", max_steps=1, evaluation={}, logging={"report_to": [], "peak_tflops": 1.0})
    run_trainer(config)
    row = json.loads((tmp_path / "outputs" / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < row["perf/mfu_rollout"] < 1 and 0 < row["perf/mfu_update"] < 1
    phases = row["time/encode"] + row["time/denoise"] + row["time/decode"]
    assert 0.5 * row["time/rollout"] < phases <= row["time/rollout"]
    assert not any(key.startswith("memory/") for key in row)  # there is no GPU


@pytest.mark.gpu
def test_memory_and_events_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    clock = PhaseClock(torch.device("cuda"))
    with clock.phase("denoise"):
        torch.randn(2048, 2048, device="cuda") @ torch.randn(2048, 2048, device="cuda")
    torch.cuda.synchronize()
    assert 0 < clock.seconds()["denoise"] < 60
