"""What a step asks of the device: floating-point operations, model FLOPs utilization, memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from trainer.processes.distributed import World

# Dense 16-bit peaks of the makers' data sheets, TFLOP/s, by a part of the device's name; the first that fits.
PEAK_TFLOPS: Mapping[str, float] = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "V100": 125.0,
}
_GIB = 2**30


def _cpu_attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


# Of the counter's own formulas the one for the CPU's attention kernel is missing.
_FORMULAS: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}


def peak_tflops(device: torch.device, given: float | None) -> float | None:
    """The device's peak: `given`, or what is known of it; None where neither is."""
    if given is not None or device.type != "cuda":
        return given
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


class FlopMeter:
    """Adds up the model FLOPs of a network's calls (PaLM's count, arXiv 2204.02311, appendix B: recomputation is none).

    The first call of each shape is measured by torch's flop counter, later ones are multiplied from it. A call without
    gradient counts once. One with gradient counts 2 + t times, t the trainable share of the parameters: forward, the
    gradient of the activations, and that of the trained weights.

    Args:
        network: hooks are put on it, unless `enabled` is False.
    """

    def __init__(self, network: nn.Module, *, enabled: bool) -> None:
        self._per_sample: dict[tuple[Any, ...], float] = {}
        self._inference = self._training = 0.0
        self._counting: FlopCounterMode | None = None
        # Under ZeRO-3 a parameter is cut into shares, and only its `ds_numel` is the whole.
        sizes = [(int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in network.parameters()]
        trained = sum(size for size, trains in sizes if trains)
        self._training_factor = 2.0 + trained / max(sum(size for size, _ in sizes), 1)
        if enabled:
            network.register_forward_pre_hook(self._before, with_kwargs=True)
            network.register_forward_hook(self._after, with_kwargs=True, always_call=True)

    def take(self) -> tuple[float, float]:
        """FLOPs without and with gradient since the last call."""
        taken = self._inference, self._training
        self._inference = self._training = 0.0
        return taken

    def _before(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        signature, _ = _shapes(args, kwargs)
        if signature not in self._per_sample:
            # Compiled blocks hide what they do from the counter.
            torch.compiler.set_stance("force_eager")
            self._counting = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
            self._counting.__enter__()  # type: ignore[no-untyped-call]

    def _after(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        signature, batch = _shapes(args, kwargs)
        if self._counting is not None:
            self._counting.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            torch.compiler.set_stance("default")
            self._per_sample[signature] = self._counting.get_total_flops() / batch
            self._counting = None
        flops = self._per_sample[signature] * batch
        if torch.is_grad_enabled():
            self._training += self._training_factor * flops
        else:
            self._inference += flops


class Gauges:
    """Metrics of the device for a step's row.

    Args:
        network: the trained one.
        given_peak_tflops: overrides what is known of the device.
    """

    def __init__(self, network: nn.Module, world: World, given_peak_tflops: float | None) -> None:
        self._world = world
        self._peak = peak_tflops(world.device, given_peak_tflops)
        self.flops = FlopMeter(network, enabled=self._peak is not None)

    def metrics(
        self, update_s: float, *, sampling_s: float = 0.0, sampling_flops: float = 0.0, phases: Mapping[str, float] = {}
    ) -> dict[str, float]:
        """Of a step: `perf/mfu_update` of this rank where the peak is known, `memory/allocated_gib|peak_gib` of the fullest
        rank on CUDA. Where the step sampled what it was trained on, also `time/<phase>` of that and `perf/mfu_rollout`.

        What was not counted is no number: the layers that a policy of tokens computes by hand never pass the network's own
        call, which is what is counted, so such a run has no MFU.

        Takes what the meter has counted since it was last asked.

        Args:
            update_s: seconds of the update.
            sampling_s, sampling_flops, phases: seconds and FLOPs of the sampling, and the seconds of its phases.
        """
        _, update_flops = self.flops.take()
        row = {f"time/{phase}": seconds for phase, seconds in phases.items()}
        if self._peak is not None and sampling_s and sampling_flops:
            row["perf/mfu_rollout"] = sampling_flops / (sampling_s * self._peak * 1e12)
        if self._peak is not None and update_flops:
            row["perf/mfu_update"] = update_flops / (update_s * self._peak * 1e12)
        return row | self._memory()

    def _memory(self) -> dict[str, float]:
        device = self._world.device
        if device.type != "cuda":
            return {}
        used = torch.cuda.memory_allocated(device) / _GIB, torch.cuda.max_memory_allocated(device) / _GIB
        torch.cuda.reset_peak_memory_stats(device)
        allocated, peak = zip(*self._world.gather(used), strict=True)
        return {"memory/allocated_gib": max(allocated), "memory/peak_gib": max(peak)}


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], int]:
    """The inputs' shapes without the batch, and the batch: the first input's leading axis."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return tuple(tuple(tensor.shape[1:]) for tensor in tensors), tensors[0].shape[0] if tensors else 1
