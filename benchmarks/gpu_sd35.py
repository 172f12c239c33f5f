"""Speed and memory of a training step at SD3.5-medium's geometry on one GPU, with random weights.

    python benchmarks/gpu_sd35.py                                  # 512 x 512, bfloat16, CFG-free, full fine-tuning
    python benchmarks/gpu_sd35.py --guidance 4.5 --lora 32 --compile
    python benchmarks/gpu_sd35.py --device cpu --tiny              # does the script run? The numbers say nothing

First the card's matrix rate is measured (bfloat16, 8192 x 8192); MFU is given against it and against the data sheet.
Rollouts are real ones (ODE-to-SDE steps, VAE decoding, log-probabilities), the update is the trainer's own Updater with
AdamW. Medians over the rounds, after one that is not counted. Texts are random embeddings of 333 tokens: encoders run
once per prompt in training and are not part of a step. Exits with 1 when an MFU against the measured rate is below 45 %
on a GPU; `--profile` then says where the time goes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.first_gpu.rates import matrix_rate, seconds
from benchmarks.waiting_service import write_results
from trainer.config import DistributedConfig, LoraConfig, OptimConfig
from trainer.config.network import NetworkConfig
from trainer.config.objective import FlowGrpoConfig
from trainer.engine import build_engine
from trainer.objectives import Scored, build_objective
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.frozen import Autoencoder
from trainer.policies.flow.policy import Conditioning, FlowPolicy
from trainer.policies.flow.sd3_tokens import Sd3Transformer
from trainer.policies.lora import autocast, prepare_network
from trainer.processes.distributed import World
from trainer.records.hardware import FlopMeter, peak_tflops
from trainer.samplers.schedules import sigmas
from trainer.types import Prompt, Rollout
from trainer.update.updater import Updater

LEAST_MFU = 0.45
MEDIUM: dict[str, Any] = {  # stabilityai/stable-diffusion-3.5-medium's published transformer/config.json
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
TINY = MEDIUM | {
    "num_layers": 2,
    "num_attention_heads": 2,
    "caption_projection_dim": 128,
    "dual_attention_layers": (0,),
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
TEXT_TOKENS = 333  # CLIP's 77 and T5's 256


class RandomSd3:
    """A `FlowModel` of random weights, made on the device."""

    about = "Random weights of SD3.5-medium's geometry."

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.device, self._size, geometry = device, args.size, TINY if args.tiny else MEDIUM
        lora = LoraConfig(rank=args.lora, alpha=2.0 * args.lora) if args.lora else None
        self._config = config = NetworkConfig(
            type="sd3", gradient_checkpointing=args.checkpointing, compile=args.compile
        )
        torch.manual_seed(0)
        with device:
            network = Sd3Transformer(**geometry)
            vae = AutoencoderKL(**VAE | ({"block_out_channels": (32,) * 4} if args.tiny else {}))
        self.network: nn.Module = prepare_network(network.bfloat16() if lora else network, config, lora, device)
        self._vae = Autoencoder(vae.bfloat16(), device)
        self._texts = torch.randn(TEXT_TOKENS, geometry["joint_attention_dim"], device=device).bfloat16()
        self._pooled = torch.randn(geometry["pooled_projection_dim"], device=device).bfloat16()

    def check_prompts(self, prompts: Sequence[Prompt]) -> None: ...

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, ...]:
        return 16, self._size // 8, self._size // 8

    def noise_levels(self, num_steps: int, height: int | None, width: int | None) -> list[float]:
        levels: list[float] = sigmas(num_steps, 3.0).tolist()
        return levels

    def encode(self, prompts_B: Sequence[Prompt]) -> Conditioning:
        count = len(prompts_B)
        return {"states": self._texts.expand(count, -1, -1), "pooled": self._pooled.expand(count, -1)}

    def velocity(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        with autocast(self._config, self.device):
            out: Tensor = network(
                hidden_states=x.bfloat16(),
                encoder_hidden_states=conditioning["states"],
                pooled_projections=conditioning["pooled"],
                timestep=sigma_B * 1000.0,
                return_dict=False,
            )[0]
        return out.float()

    def to_latents(self, pixels_BHWC: Tensor) -> Tensor:
        return self._vae.encode(pixels_BHWC)

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents)


class Bench:
    """A policy of random weights and its updater: rounds of a rollout and an update on it."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        self.policy, world = FlowPolicy(RandomSd3(args, device), keep_reference=False), World(0, 1, device)
        optim = OptimConfig(lr=1e-6, micro_batch_size=args.update_micro_batch)
        self.engine = build_engine(self.policy.trainable, optim, DistributedConfig(), world)
        objective = build_objective(self.policy, FlowGrpoConfig(), micro_batch_size=args.update_micro_batch, seed=0)
        self.updater = Updater(objective, self.engine, optim, world, max_steps=1_000_000)
        self._plan = SamplingPlan(
            num_inference_steps=args.steps,
            micro_batch_size=args.rollout_micro_batch,
            noise_level=0.7,
            stochastic_steps=range(args.trained),
            trained_steps=range(args.trained),
            guidance_scale=args.guidance,
            shift=3.0,
        )
        self._prompts = [Prompt(str(i), f"prompt {i}") for i in range(args.batch // 8)]
        self._scores = torch.randn(args.batch), torch.ones(args.batch)

    def rollout(self) -> list[Rollout]:
        return list(self.policy.sample(self._prompts, 8, range(self.args.batch), self._plan))

    def update(self, rollouts: Sequence[Rollout], number: int) -> dict[str, float]:
        """Training step `number`, from 0."""
        return self.updater.step(Scored(rollouts, *self._scores), number)


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Medians over the rounds."""
    bench = Bench(args, device)
    meter = FlopMeter(bench.policy.trainable, enabled=True)
    rounds = []
    for number in range(args.rounds + 1):
        meter.take()
        rollout_s, rollouts = seconds(device, bench.rollout)
        sampled_flops, _ = meter.take()
        update_s, row = seconds(device, lambda r=rollouts, n=number: bench.update(r, n))
        _, trained_flops = meter.take()
        assert row["ratio/replay_error"] < 1e-3, row
        rounds.append((rollout_s, update_s, sampled_flops, trained_flops))
    rollout_s, update_s, sampled_flops, trained_flops = (
        statistics.median(values) for values in zip(*rounds[1:], strict=True)
    )
    return {
        "parameters": sum(p.numel() for p in bench.policy.trainable.parameters()),
        "rollout_images_per_s": args.batch / rollout_s,
        "train_samples_per_s": args.batch / update_s,
        "train_sample_steps_per_s": args.batch * args.trained / update_s,
        "rollout_flops_per_s": sampled_flops / rollout_s,
        "update_flops_per_s": trained_flops / update_s,
        "peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
    }


def profile(args: argparse.Namespace, device: torch.device) -> None:
    """Where the time of a round goes: the forty costliest operations."""
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, activity.CUDA] if device.type == "cuda" else [activity.CPU]
    with torch.profiler.profile(activities=kinds) as profiler:
        measure(argparse.Namespace(**{**vars(args), "rounds": 1}), device)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=40))


def flags() -> argparse.ArgumentParser:
    """What a measurement is asked with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", type=int, default=512, help="Height and width in pixels.")
    parser.add_argument("--batch", type=int, default=32, help="Images of a step, a multiple of 8.")
    parser.add_argument("--rollout-micro-batch", type=int, default=32)
    parser.add_argument("--update-micro-batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="Denoising steps of a rollout.")
    parser.add_argument("--trained", type=int, default=4, help="Stochastic steps, all of them trained.")
    parser.add_argument("--guidance", type=float, default=1.0, help="1 is none; more doubles the batch.")
    parser.add_argument("--lora", type=int, default=0, help="Rank of adapters; 0 trains everything.")
    parser.add_argument("--checkpointing", action="store_true", help="Gradient checkpointing.")
    parser.add_argument("--compile", action="store_true", help="Compile the blocks.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="Two narrow blocks.")
    parser.add_argument("--profile", action="store_true", help="Print a profile of a round, too.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/gpu_sd35.json"))
    return parser


def main() -> int:
    args = flags().parse_args()
    device = torch.device(args.device)
    rate = matrix_rate(device, 256 if args.tiny else 8192)
    row = measure(args, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    sheet = peak_tflops(device, None)
    facts = {
        "hardware": name,
        "torch": torch.__version__,
        "matrix_tflops": rate / 1e12,
        **row,
        "mfu_rollout": row.pop("rollout_flops_per_s") / rate,
        "mfu_update": row.pop("update_flops_per_s") / rate,
        "arguments": {key: str(value) for key, value in vars(args).items()},
    }
    if sheet is not None:
        facts |= {f"{key}_of_data_sheet": facts[key] * rate / (sheet * 1e12) for key in ("mfu_rollout", "mfu_update")}
    print("| quantity | value |\n|---|---|")
    for key, value in facts.items():
        if key != "arguments":
            print(f"| {key} | {value:.4g} |" if isinstance(value, float) else f"| {key} | {value} |")
    write_results(args.out, "gpu_sd35", [facts])
    if args.profile:
        profile(args, device)
    return int(device.type == "cuda" and min(facts["mfu_rollout"], facts["mfu_update"]) < LEAST_MFU)


if __name__ == "__main__":
    sys.exit(main())
