"""What a step of SD3.5-medium costs on many GPUs: bytes, collectives, checkpoints, reward services.

    python benchmarks/scaling_plan.py [--gpus 1000] [--write docs/scaling.md]

Arithmetic, no measurement: unit costs that were measured are cited with their hardware, all others are marked as
assumptions and are options of the command line. `--write` replaces the generated part of the page.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- begin: benchmarks/scaling_plan.py -->", "<!-- end: benchmarks/scaling_plan.py -->"
FP32 = 4
PARAMETERS = 2_243_171_520  # SD3.5-medium's transformer; tests/trainer/engine/test_scaling_plan.py counts these two
# One image, one velocity at 512x512 with 333 text tokens and guidance (two passes), counted by torch's FlopCounterMode.
# No formula in PARAMETERS: a third of them, the modulation, acts once per image and not per token, and attention has none.
FORWARD_TFLOP = 4.885285208064

# Measured (docs/LOG.md, "The reward plane, measured" and "Fresh clone"; benchmarks/README.md).
OCR_PER_CORE = 15.74 / 2  # images/s, 512x512 page mode, two workers on two EPYC cores, HTTP included
GATEWAY_PER_PROCESS = 57.2  # judge calls/s with calls of 1 s; client, gateway and judge on two EPYC cores
RAW_BYTES = 512 * 512 * 3  # a picture on the wire as raw RGB8
JPEG_BYTES = 212_000  # JPEG 95 (benchmarks/image_encoding.py)


@dataclass(frozen=True)
class Plan:
    """A run's shape, and the assumptions. Rates are per GPU unless said otherwise."""

    gpus: int = 1000
    gpus_per_node: int = 8
    group_size: int = 24
    prompts_per_gpu: int = 1
    inference_steps: int = 10
    trained_steps: int = 9
    rollout_micro_batch: int = 24
    update_micro_batch: int = 8
    peak_tflops: float = 989.0  # H100 SXM, bfloat16, dense: the vendor's figure
    utilisation: float = 0.4
    node_gbytes_per_s: float = 400.0  # eight 400 Gbit/s adapters a node
    hps_per_gpu: float = 400.0
    judge_calls_per_gpu: float = 12.0
    comparisons_per_image: int = 4
    headroom: float = 0.7

    @property
    def images(self) -> int:
        return self.gpus * self.prompts_per_gpu * self.group_size

    @property
    def images_per_gpu(self) -> int:
        return self.prompts_per_gpu * self.group_size

    @property
    def rollout_s(self) -> float:
        return self.images_per_gpu * self.inference_steps * FORWARD_TFLOP / (self.peak_tflops * self.utilisation)

    @property
    def update_s(self) -> float:
        """Forward and backward: three forwards' work."""
        return 3 * self.images_per_gpu * self.trained_steps * FORWARD_TFLOP / (self.peak_tflops * self.utilisation)

    @property
    def backwards(self) -> int:
        return math.ceil(self.images_per_gpu / self.update_micro_batch) * self.trained_steps

    @property
    def rollout_forwards(self) -> int:
        return math.ceil(self.images_per_gpu / self.rollout_micro_batch) * self.inference_steps

    @property
    def link_gbytes_per_s(self) -> float:
        """A GPU's share of its node's way out, which a ring over all nodes passes once per node."""
        return self.node_gbytes_per_s / self.gpus_per_node

    @property
    def step_s(self) -> float:
        """With ZeRO-1, whose communication is not hidden."""
        return self.rollout_s + self.update_s + self.sent_bytes(1) / 1e9 / self.link_gbytes_per_s

    def sent_bytes(self, stage: int) -> float:
        """What each GPU sends a step. A ring sends (n - 1)/n of the data for a reduce-scatter or an all-gather, twice
        that for an all-reduce."""
        whole = FP32 * PARAMETERS * (self.gpus - 1) / self.gpus
        times = {
            0: 2,  # one all-reduce of the gradients
            1: 2,  # gradients to their owners once, updated weights back
            2: self.backwards + 1,  # gradients to their owners in every backward pass, weights back
            3: self.rollout_forwards + 3 * self.backwards,  # weights in every forward and backward pass, and gradients
        }
        return times[stage] * whole

    def resident_bytes(self, stage: int) -> float:
        """Per GPU, without activations: weights, gradients, the optimizer's copy, two moments, the average."""
        n = self.gpus
        whole = FP32 * PARAMETERS
        return {
            0: whole * (1 + 1 + 2 + 1),
            1: whole * (1 + 1 + 1) + whole * 3 / n,
            2: whole * (1 + 1) + whole * (1 + 3) / n,
            3: whole * (1 + 1 + 1 + 2 + 1) / n,
        }[stage]


def stages(plan: Plan) -> list[str]:
    names = {
        0: "one all-reduce",
        1: "one reduce, one all-gather",
        2: f"{plan.backwards} reduces, one all-gather",
        3: f"{plan.rollout_forwards} + {2 * plan.backwards} all-gathers, {plan.backwards} reduce-scatters",
    }
    rows = [
        "| ZeRO stage | collectives a step | sent per GPU, GB | seconds | GB held per GPU |",
        "|---|---|---|---|---|",
    ]
    for stage, name in names.items():
        sent = plan.sent_bytes(stage) / 1e9
        seconds = sent / plan.link_gbytes_per_s
        rows.append(f"| {stage} | {name} | {sent:.1f} | {seconds:.2f} | {plan.resident_bytes(stage) / 1e9:.1f} |")
    return rows


def step(plan: Plan) -> list[str]:
    return [
        "| what | formula | result |",
        "|---|---|---|",
        f"| images a step | GPUs x P/GPU x G = {plan.gpus} x {plan.prompts_per_gpu} x {plan.group_size} | {plan.images} |",
        f"| one guided velocity | counted: 512x512, 333 text tokens, 2 passes | {FORWARD_TFLOP:.2f} TFLOP |",
        f"| rollout | images/GPU x {plan.inference_steps} steps x velocity / (peak x utilisation) | {plan.rollout_s:.1f} s |",
        f"| update | 3 x images/GPU x {plan.trained_steps} steps x velocity / (peak x utilisation) | {plan.update_s:.1f} s |",
        f"| step | rollout + update + communication of ZeRO-1, rewards hidden | {plan.step_s:.1f} s |",
        f"| images/s | images / step | {plan.images / plan.step_s:.0f} |",
    ]


def checkpoint(plan: Plan) -> list[str]:
    whole = 4 * FP32 * PARAMETERS
    period_s = max(0.5, plan.gpus / 500)  # trainer/processes/failure.py
    return [
        "| what | formula | result |",
        "|---|---|---|",
        f"| a checkpoint | 4 float32 tensors (weight, two moments, average) x N | {whole / 1e9:.1f} GB |",
        f"| one rank's shard | / {plan.gpus} | {whole / plan.gpus / 1e6:.0f} MB |",
        f"| read through each GPU | all-gather of each sharded tensor, (n - 1)/n of {whole / 1e9:.1f} GB | "
        f"{whole / 1e9 / plan.link_gbytes_per_s:.2f} s |",
        f"| kept on disk | 3 newest and 1 best | {4 * whole / 1e9:.0f} GB |",
        f"| heartbeats at the store | 4 requests x ranks / period, {period_s:g} s | {4 * plan.gpus / period_s:.0f} requests/s |",
    ]


def services(plan: Plan) -> list[str]:
    rate = plan.images / plan.step_s
    calls = rate * plan.comparisons_per_image / 2
    pairs = rate * (plan.group_size - 1) / 2
    rows = [
        "| reward | requests/s | one unit does | units needed |",
        "|---|---|---|---|",
    ]
    table: list[tuple[str, float, str, float, str]] = [
        ("OCR, page mode", rate, "images/s a CPU core (measured)", OCR_PER_CORE, "cores"),
        ("HPSv2", rate, "images/s a GPU (assumed)", plan.hps_per_gpu, "GPUs"),
        (
            f"UnifiedReward, {plan.comparisons_per_image} opponents an image",
            calls,
            "calls/s a GPU (assumed)",
            plan.judge_calls_per_gpu,
            "GPUs",
        ),
        ("UnifiedReward, all pairs", pairs, "calls/s a GPU (assumed)", plan.judge_calls_per_gpu, "GPUs"),
        (
            "its gateway, with fewer opponents",
            calls,
            "calls/s a process on two cores (measured)",
            GATEWAY_PER_PROCESS,
            "processes",
        ),
    ]
    for name, wanted, unit, speed, noun in table:
        needed = math.ceil(wanted / speed / plan.headroom)
        rows.append(f"| {name} | {wanted:.0f} | {speed:g} {unit} | {needed} {noun} |")
    rows += [
        "",
        f"Pictures on the wire: {rate * RAW_BYTES / 1e9:.2f} GB/s raw, {rate * JPEG_BYTES / 1e9:.2f} GB/s as JPEG 95, for each "
        f"reward; {rate * RAW_BYTES / 1e6 / (plan.gpus / plan.gpus_per_node):.1f} MB/s from each node.",
    ]
    return rows


def report(plan: Plan) -> str:
    """The generated part of docs/scaling.md."""
    shape = (
        f"{plan.gpus} GPUs in nodes of {plan.gpus_per_node}; N = {PARAMETERS:,} trained weights; G = {plan.group_size}; "
        f"micro-batches of {plan.rollout_micro_batch} (rollout) and {plan.update_micro_batch} (update); "
        f"{plan.inference_steps} denoising steps of which {plan.trained_steps} are trained; guidance.\n"
        f"Assumed: {plan.peak_tflops:g} TFLOP/s at {plan.utilisation:.0%} utilisation, {plan.node_gbytes_per_s:g} GB/s out of a "
        f"node ({plan.link_gbytes_per_s:g} per GPU), services planned for {plan.headroom:.0%} load."
    )
    parts = [shape]
    for title, rows in (
        ("The step", step(plan)),
        ("Communication and memory", stages(plan)),
        ("Checkpoints and heartbeats", checkpoint(plan)),
        ("Reward services", services(plan)),
    ):
        parts.append(f"### {title}\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def replaced(page: str, generated: str) -> str:
    """The page with its generated part replaced. Raises ValueError where the page has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page must hold the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in vars(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"(default {value})")
    parser.add_argument("--write", type=Path, help="Page whose generated part is replaced; else it is printed.")
    arguments = vars(parser.parse_args(argv))
    page = arguments.pop("write")
    generated = report(Plan(**arguments))
    if page is None:
        print(generated)
    else:
        page.write_text(replaced(page.read_text(encoding="utf-8"), generated), encoding="utf-8")


if __name__ == "__main__":
    main()
