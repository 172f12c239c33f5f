"""What adding up gradients over two ranks costs beside the backward pass, after it and during it.

    python benchmarks/gradient_overlap.py
    python benchmarks/gradient_overlap.py --layers 12 --width 512 --rounds 9

Two processes on this machine over gloo, one thread each, a stack of linear layers, three micro-batches a step. Three arrangements take
turns within a round: `alone` adds nothing up, `after` sends one message when the last backward is over, `during` is the engine's own. Printed are
the medians over the rounds of the seconds of a step, and of what the sum adds to the backward. The gradients of `after` and `during`
are compared bit for bit; it exits with 1 where they differ. Run it on an idle machine with more cores than ranks: gloo's copies and additions are
work of the CPU, and only what waits or has a core of its own is hidden by the pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from trainer.engine.reduction import GradientSum
from trainer.processes.distributed import World

WAYS = ("alone", "after", "during")
MICRO_BATCHES = 3


def step(way: str, module: nn.Module, total: GradientSum, batches: list[Tensor]) -> float:
    """Seconds of a step's backward passes and of the sum."""
    module.zero_grad(set_to_none=True)
    total.forget()
    dist.barrier()
    started = time.perf_counter()
    for number, batch in enumerate(batches):
        loss = module(batch).square().mean()
        if way == "during" and number == len(batches) - 1:
            with total.last_pass():
                loss.backward()
        else:
            loss.backward()
    if way == "during":
        total.finish()
    elif way == "after":
        flat = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        dist.all_reduce(flat)
        for parameter, gradient in zip(
            module.parameters(), flat.split([p.numel() for p in module.parameters()]), strict=True
        ):
            parameter.grad = gradient.view_as(parameter)
    return time.perf_counter() - started


def rank(number: int, folder: str, layers: int, width: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    world = World(rank=number, size=2, device=torch.device("cpu"))
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    total = GradientSum(list(module.parameters()), world, bucket_bytes=4 << 20)
    torch.manual_seed(number)
    batches = [torch.randn(256, width) for _ in range(MICRO_BATCHES)]
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    sums: dict[str, list[Tensor]] = {}
    for each in range(rounds + 1):
        for way in WAYS[:: 1 if each % 2 else -1]:
            seconds = step(way, module, total, batches)
            if each:  # the first round warms up
                took[way].append(seconds)
            sums[way] = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    same = all(a.equal(b) for a, b in zip(sums["after"], sums["during"], strict=True))
    if number == 0:
        (Path(folder) / "found.json").write_text(json.dumps({"took_s": took, "same_bits": same}))
    dist.barrier()
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/gradient_overlap.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank, args=(folder, args.layers, args.width, args.rounds), nprocs=2)
        found = json.loads((Path(folder) / "found.json").read_text())
    median = {way: statistics.median(found["took_s"][way]) for way in WAYS}
    millions = args.layers * (args.width + 1) * args.width / 1e6
    print(f"{millions:.1f} million parameters, {MICRO_BATCHES} micro-batches, {args.rounds} rounds\n")
    print("| sum | step s | beyond the passes s |\n|---|---|---|")
    for way in WAYS:
        print(f"| {way} | {median[way]:.4f} | {median[way] - median['alone']:.4f} |")
    print(f"\nthe same bits: {found['same_bits']}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(not found["same_bits"])


if __name__ == "__main__":
    raise SystemExit(main())
