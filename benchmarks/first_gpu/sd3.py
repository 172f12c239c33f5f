"""SD3.5-medium's geometry with random weights: speed, memory, attention, and whether a replay is its rollout."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.first_gpu.flops import sd3_forward, training_factor
from benchmarks.first_gpu.forecast import forecast, write_sd3
from benchmarks.first_gpu.rates import matrix_rate, seconds
from benchmarks.first_gpu.rows import Row
from benchmarks.first_gpu.setting import Setting
from benchmarks.gpu_sd35 import MEDIUM, TEXT_TOKENS, TINY, VAE, Bench, flags
from trainer.policies.base import Replays
from trainer.types import Rollout

GOAL_MFU, GOAL_MEMORY, CLIP_RANGE = 0.55, 0.1, 1e-5
_ROOMY_GIB = 100  # from here on all activations of full training stay; below, blocks are computed twice


def measure(setting: Setting, *, lora: int, compiled: bool) -> Iterator[Row]:
    args = _arguments(setting, lora, compiled)
    device = setting.device
    rate = matrix_rate(device, 256 if setting.tiny else 8192)
    yield setting.row("bf16 matrix products in this process, TFLOP/s", rate / 1e12)
    bench = Bench(args, device)
    setting.forget_peak()
    took, rollouts = seconds(device, bench.rollout)
    yield setting.row("first rollout, s", took, note="with what is compiled" if compiled else "")
    how = "graphs with and without gradients are compiled apart" if compiled else "the same kernels"
    yield from replayed(setting, bench.policy, rollouts, exact=not compiled, note=how)
    took, row = seconds(device, lambda: bench.update(rollouts, 0))
    yield setting.row("first update, s", took, note=f"gradient norm {row['grad_norm']:.3g}")
    rounds = []
    for number in range(args.rounds):
        rollout_s, rollouts = seconds(device, bench.rollout)
        update_s, _ = seconds(device, lambda r=rollouts, n=number: bench.update(r, n + 1))
        rounds.append((rollout_s, update_s))
    rollout_s, update_s = (statistics.median(each) for each in zip(*rounds, strict=True))
    yield from _speed(setting, bench, rate, rollout_s, update_s)
    yield from _memory(setting, args)
    yield setting.row("attention, by the kernels of a rollout", attention_of(bench.rollout, device))
    if not lora:
        yield from _saved(setting, bench)


def _arguments(setting: Setting, lora: int, compiled: bool) -> argparse.Namespace:
    """Rollout and update take as many images at once: a replay can equal its rollout only where both have one batch size."""
    args = flags().parse_args([])
    args.lora, args.compile, args.tiny, args.device = lora, compiled, setting.tiny, setting.device.type
    args.rollout_micro_batch = args.update_micro_batch = 8
    if setting.tiny:
        args.size, args.batch, args.steps, args.trained, args.rounds = 64, 8, 3, 2, 1
    elif setting.is_gpu:
        args.checkpointing = not lora and torch.cuda.mem_get_info()[1] < _ROOMY_GIB * 2**30
    return args


def replayed(
    setting: Setting, policy: Replays, rollouts: Sequence[Rollout], *, exact: bool, note: str
) -> Iterator[Row]:
    """Log-probabilities of replays with gradients beside those that were drawn, before any update.

    Args:
        exact: they should be equal bit for bit.
    """
    apart = []
    for rollout in rollouts:
        for part in policy.parts(rollout):
            logp_BS = policy.replay(rollout, part).logp_BS.detach()
            apart.append((logp_BS.double().cpu() - rollout.logp_BS[:, part].double().cpu()).flatten())
    differences = torch.cat(apart)
    largest = float(differences.abs().max())
    clipped = float((differences.expm1().abs() > CLIP_RANGE).double().mean())
    goal, reached = ("0", largest == 0) if exact else ("", None)
    yield setting.row("replay - rollout, largest log-prob", largest, goal=goal, reached=reached, note=note)
    told = f"of {len(differences)} ratios, which should all be 1"
    yield setting.row(f"replay: share clipped at {CLIP_RANGE:g}", clipped, goal=goal, reached=reached, note=told)


def _speed(setting: Setting, bench: Bench, rate: float, rollout_s: float, update_s: float) -> Iterator[Row]:
    args, weights = bench.args, list(bench.policy.trainable.parameters())
    side = args.size // 8
    forward = args.batch * sd3_forward(TINY if args.tiny else MEDIUM, side, side, TEXT_TOKENS)
    counts = [sum(p.numel() for p in weights if p.requires_grad), sum(p.numel() for p in weights)]
    sampled, trained = forward * args.steps, forward * args.trained * training_factor(*counts)
    yield setting.row(
        "parameters trained, of all",
        f"{counts[0]:,} of {counts[1]:,}",
        note=f"gradient checkpointing: {args.checkpointing}",
    )
    yield setting.row("sampling, images/s", args.batch / rollout_s, note=f"{args.steps} steps, decoded, no guidance")
    yield setting.row("update, images x steps/s", args.batch * args.trained / update_s, note="AdamW's step included")
    for what, mfu in (("sampling", sampled / rollout_s / rate), ("update", trained / update_s / rate)):
        goal = f">= {GOAL_MFU} on an H200" if args.compile else ""
        reached = setting.on_an_h200(mfu >= GOAL_MFU) if args.compile else None
        yield setting.row(
            f"{what}: MFU", mfu, goal=goal, reached=reached, note="of the measured rate; decoder not counted as work"
        )


def _memory(setting: Setting, args: argparse.Namespace) -> Iterator[Row]:
    geometry, vae = TINY if args.tiny else MEDIUM, VAE | ({"block_out_channels": (32,) * 4} if args.tiny else {})
    told = forecast(
        write_sd3(setting.scratch / "sd3", geometry, vae),
        {
            "policy.lora": {"rank": args.lora} if args.lora else None,
            "policy.gradient_checkpointing": args.checkpointing,
            "policy.compile": args.compile,
            "sampling.height": args.size,
            "sampling.width": args.size,
            "sampling.guidance_scale": args.guidance,
            "sampling.micro_batch_size": args.rollout_micro_batch,
            "optim.micro_batch_size": args.update_micro_batch,
        },
    )
    told.pop("average")  # is not kept here
    forecast_gib, peak = sum(told.values()) / 2**30, setting.peak_gib()
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in told.items() if size)
    yield setting.row("the doctor's forecast, GiB", forecast_gib, note=parts)
    yield setting.row("peak of memory, GiB", peak, note="" if peak else "counted on a GPU alone")
    ratio = None if peak is None else peak / forecast_gib
    close = None if ratio is None else setting.on_a_gpu(abs(ratio - 1) <= GOAL_MEMORY)
    yield setting.row("peak / forecast", ratio, goal="0.9 to 1.1", reached=close)


def attention_of(work: Callable[[], Any], device: torch.device) -> str:
    """torch's operators of attention that `work` called, and on a GPU the kernel that took longest for it."""
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, activity.CUDA] if device.type == "cuda" else [activity.CPU]
    with torch.profiler.profile(activities=kinds) as profiler:
        work()
    events = profiler.key_averages()
    operators = sorted({each.key for each in events if each.key.startswith("aten::_") and "dot_product" in each.key})
    words = ("flash", "fmha", "sdpa", "attention")
    kernels = [
        each
        for each in events
        if getattr(each, "device_time_total", 0)
        and "::_" not in each.key
        and any(word in each.key.lower() for word in words)
    ]
    told = (
        [max(kernels, key=lambda each: each.device_time_total).key[:120]] if kernels and device.type == "cuda" else []
    )
    return "; ".join([*(name.removeprefix("aten::_") for name in operators), *told]) or "none seen"


def _saved(setting: Setting, bench: Bench) -> Iterator[Row]:
    """How long a checkpoint of this size holds training up: weights and moments are copied to the machine's memory."""

    def read() -> int:
        return sum(each.nbytes for name in bench.engine.names for each in bench.engine.read(name).values())

    took, size = seconds(setting.device, read)
    yield setting.row(
        "copy of weights and moments for a checkpoint, s",
        took,
        note=f"{size / 2**30:.2f} GiB, an average not among them",
    )
