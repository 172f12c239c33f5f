"""What an update costs when half of its groups are all alike, beside one that computes them all the same.

    python benchmarks/without_gradient.py
    python benchmarks/without_gradient.py --rounds 3 --prompts 4

A small tiny policy, four samples of each prompt, one thread; every second group has advantages of 0. `computed` takes every sample through the
network as before, `left out` is the product, and the two take turns in one process. Printed are the medians of the CPU seconds of an update
and of the rounds' ratios, for micro-batches as they were sampled. Exits with 1 when the ratio is above 0.65.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import write_results
from tests.support.tiny_updates import PROMPTS, drawn_again, make_updater, policy_for, roll_out
from trainer.objectives import Scored
from trainer.objectives.base import micro_batches
from trainer.objectives.flow import grpo

MOST = 0.65


def everything(fed: Scored, acts_B: Any, step: int, size: int | None, count: Any, *, policy: Any) -> Any:
    return micro_batches(fed, step, size)


def cpu_s(update: Callable[[], Any]) -> float:
    began = time.process_time()
    update()
    return time.process_time() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/without_gradient.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    prompts = [replace(PROMPTS[n % 2], id=f"p{n}") for n in range(args.prompts)]
    policy = policy_for()
    updater = make_updater(policy, lr=1e-9)
    rollouts = roll_out(policy, "flow_grpo", 8, prompts=prompts, seeds=range(4 * args.prompts))
    adv_B = torch.tensor([1.0, -1, 0.5, -0.5, 0, 0, 0, 0]).repeat(args.prompts)[: 4 * args.prompts]
    weight_B = torch.ones_like(adv_B)
    found: dict[str, list[float]] = {"computed": [], "left out": []}

    def update() -> None:
        updater.step(Scored(drawn_again(rollouts), adv_B, weight_B), 0)

    update()
    for number in range(args.rounds):
        for name in sorted(found, reverse=bool(number % 2)):
            with mock.patch.object(grpo, "with_gradient", everything if name == "computed" else grpo.with_gradient):
                found[name].append(cpu_s(update))
    ratio = statistics.median(left / all_ for all_, left in zip(*found.values(), strict=True))
    for name, seconds in found.items():
        print(f"{name:9} {statistics.median(seconds):.3f} CPU s")
    print(f"ratio     {ratio:.3f} (half of the samples have a gradient)")
    write_results(args.out, "without_gradient", [{"prompts": args.prompts, "cpu_s": found, "ratio": ratio}])
    return int(ratio > MOST)


if __name__ == "__main__":
    sys.exit(main())
