"""What the trainer adds to the cost of the network itself: rollouts and updates of a tiny SD3 on one thread of a CPU.

    python benchmarks/tiny_sd3.py
    python benchmarks/tiny_sd3.py --model FOLDER    # the very folder that another trainer is measured with

Rollouts are real ones (classifier-free guidance, ODE-to-SDE steps, log-probabilities, VAE decoding), the update is the
trainer's own Updater with AdamW. CPU seconds of the process, medians over the rounds, the first left out. The network's
share is what its forward passes take, in a rollout the autoencoder's, too, and in an update the backward pass, in which the
loss's own few operations are counted as the network's. Exits with 1 when everything else takes more than .03 of either.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import write_results
from tests.support.tiny_pipelines import make_sd3
from trainer.config import DistributedConfig, LoraConfig, OptimConfig, Sd3Config
from trainer.config.objective import FlowGrpoConfig
from trainer.engine import build_engine
from trainer.objectives import Scored, build_objective
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.flow.sd3 import Sd3Flow
from trainer.processes.distributed import World
from trainer.types import Prompt
from trainer.update.updater import Updater

MOST_ELSE = 0.03


class CpuMeter:
    """CPU seconds inside the calls it wraps, outermost ones only."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def wrap(self, holder: Any, name: str) -> None:
        """Measure `holder.name`."""
        call: Callable[..., Any] = getattr(holder, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            started, self._depth = time.process_time(), self._depth + 1
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.process_time() - started

        setattr(holder, name, measured)

    def during(self, work: Callable[[], Any]) -> tuple[float, float, Any]:
        """CPU seconds of `work`, those of them inside the wrapped calls, and what it returns."""
        self.seconds, started = 0.0, time.process_time()
        result = work()
        return time.process_time() - started, self.seconds, result


def make_policy(folder: Path, args: argparse.Namespace) -> FlowPolicy:
    lora = LoraConfig(rank=args.lora, alpha=2.0 * args.lora) if args.lora else None
    config = Sd3Config(
        type="sd3", pretrained=str(folder), dtype=args.dtype, lora=lora, max_sequence_length=args.max_sequence_length
    )
    return FlowPolicy(Sd3Flow(config, torch.device("cpu")), keep_reference=False)


def measure(policy: FlowPolicy, args: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds."""
    meter, world = CpuMeter(), World(rank=0, size=1, device=torch.device("cpu"))
    optim = OptimConfig(lr=1e-6)
    engine = build_engine(policy.trainable, optim, DistributedConfig(), world)
    objective = build_objective(policy, FlowGrpoConfig(), micro_batch_size=None, seed=0)
    updater = Updater(objective, engine, optim, world, max_steps=1_000_000)
    assert isinstance(policy.model, Sd3Flow)
    network: nn.Module = policy.trainable
    for holder, name in ((network, "forward"), (policy.model.vae.vae, "decode"), (engine, "backward")):
        meter.wrap(holder, name)
    trained = range(args.steps - 1)
    plan = SamplingPlan(
        num_inference_steps=args.steps,
        micro_batch_size=args.batch,
        kind="flow_sde",
        noise_level=0.7,
        stochastic_steps=trained,
        trained_steps=trained,
        guidance_scale=args.guidance,
        shift=None,
        height=args.size,
        width=args.size,
    )
    prompts = [Prompt(str(i), f"prompt number {i}") for i in range(args.batch // args.group)]
    advantages, weights = torch.randn(args.batch), torch.ones(args.batch)
    rounds = []
    for number in range(args.rounds + 1):
        started = time.perf_counter()
        rollout_s, in_rollout_s, rollouts = meter.during(
            lambda: list(policy.sample(prompts, args.group, range(args.batch), plan))
        )
        wall_s = time.perf_counter() - started
        train_s, in_train_s, row = meter.during(
            lambda n=number, r=rollouts: updater.step(Scored(r, advantages, weights), n)  # type: ignore[misc]
        )
        assert row["ratio/min"] == row["ratio/max"] == 1.0, row
        rounds.append((rollout_s, wall_s, train_s, 1 - in_rollout_s / rollout_s, 1 - in_train_s / train_s))
    rollout_s, wall_s, train_s, rollout_else, train_else = (
        statistics.median(values) for values in zip(*rounds[1:], strict=True)
    )
    return {
        "trained parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "rollout CPU s / image": rollout_s / args.batch,
        "rollout images / s": args.batch / wall_s,
        "train CPU s / sample": train_s / args.batch,
        "train CPU s / sample step": train_s / args.batch / len(trained),
        "share of the rollout outside networks": rollout_else,
        "share of the update outside the network": train_else,
        "peak memory (MB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="A diffusers folder of SD3; without it a tiny one is made.")
    parser.add_argument("--hidden-size", type=int, default=32, help="Width of the transformer that is made.")
    parser.add_argument("--num-layers", type=int, default=2, help="Blocks of the transformer that is made.")
    parser.add_argument("--size", type=int, default=64, help="Height and width in pixels.")
    parser.add_argument("--steps", type=int, default=10, help="Denoising steps; all but the last are trained.")
    parser.add_argument("--guidance", type=float, default=4.5, help="1 is none; more doubles the batch.")
    parser.add_argument("--batch", type=int, default=8, help="Images of a round, one micro-batch.")
    parser.add_argument("--group", type=int, default=4, help="Images of a prompt; divides the batch.")
    parser.add_argument("--lora", type=int, default=0, help="Rank of adapters; 0 trains everything.")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--max-sequence-length", type=int, default=256, help="T5 tokens.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/tiny_sd3.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        made = {"hidden_size": args.hidden_size, "num_layers": args.num_layers, "sample_size": args.size // 2}
        policy = make_policy(args.model or make_sd3(Path(folder), **made), args)
    row = measure(policy, args)
    print("| quantity | value |\n|---|---|")
    for key, value in row.items():
        print(f"| {key} | {value:.4g} |")
    arguments = {key: str(value) for key, value in vars(args).items()}
    write_results(args.out, "tiny_sd3", [{**row, "torch": torch.__version__, "arguments": arguments}])
    return int(
        max(row[f"share of the {part}"] for part in ("rollout outside networks", "update outside the network"))
        > MOST_ELSE
    )


if __name__ == "__main__":
    sys.exit(main())
