"""Speed and memory of both tasks of a step at Janus-Pro-1B's geometry on one GPU, with random weights.

    python benchmarks/gpu_janus.py                            # bfloat16, guidance 5, the language model is trained
    python benchmarks/gpu_janus.py --lora 32 --micro-batch 16
    python benchmarks/gpu_janus.py --device cpu --tiny        # does the script run? The numbers say nothing

First the card's matrix rate is measured (bfloat16, 8192 x 8192); MFU is given against it and against the data sheet. Images are
drawn (both branches, 576 tokens each) and decoded, answers to questions about an image are written, and both are trained on by the
trainer's own Updater with AdamW. Medians over the rounds, after one that is not counted. Model FLOPs are 2 a parameter and token,
and those of attention, of each prompt once for its group; three times as many where gradients are taken, whatever is computed again.
Drawing reads every weight for one token of each row, so its MFU is low by nature: `read_share` is the share of the time that reading
the weights once a token would take at the measured rate of a copy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.first_gpu.flops import decoder_forward
from benchmarks.first_gpu.rates import copy_rate, matrix_rate, seconds
from benchmarks.waiting_service import write_results
from tests.support.tiny_janus import GRID, SIDE, janus_config, write_processor
from trainer.config import DistributedConfig, JanusConfig, LoraConfig, OptimConfig
from trainer.config.objective import ObjectiveConfig
from trainer.config.token_objective import DapoConfig
from trainer.engine import build_engine
from trainer.objectives import Objective, Scored, build_objective
from trainer.objectives.tasks import Tasks
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.preparing import prepare
from trainer.policies.tokens.processors import load_processor
from trainer.policies.unified.draw import ImagePlan
from trainer.policies.unified.family import UNIFIED
from trainer.policies.unified.janus.model import JanusModel, part_of
from trainer.policies.unified.policy import UnifiedPolicy
from trainer.processes.distributed import World
from trainer.records.hardware import peak_tflops
from trainer.types import Prompt, Rollout
from trainer.update.updater import Updater

# deepseek-ai/Janus-Pro-1B's published config.json, in transformers' words.
TEXT = {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 5632}
VISION = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 384, "patch_size": 16}
VQ = {
    "embed_dim": 8,
    "num_embeddings": 16384,
    "latent_channels": 256,
    "base_channels": 128,
    "channel_multiplier": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
}
VOCABULARY, SHOWN = 102400, 576
GROUP = 8


def geometry(tokenizer: Any) -> Any:
    """transformers' configuration of Janus-Pro-1B, with this tokenizer's ids."""
    from transformers import JanusConfig as Published

    small = janus_config(tokenizer)
    width = TEXT["hidden_size"]
    heads = {"num_key_value_heads": TEXT["num_attention_heads"], "head_dim": width // TEXT["num_attention_heads"]}
    heads |= {"max_position_embeddings": 16384}
    text = small.text_config.to_dict() | TEXT | heads | {"vocab_size": VOCABULARY}
    vision = VISION | {"mlp_ratio": 4.0, "projection_dim": width, "num_image_tokens": SHOWN}
    vq = VQ | {"projection_dim": width, "image_token_embed_dim": width, "num_patches": 24}
    return Published(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=small.image_token_id,
        tie_word_embeddings=False,
    )


def build(args: argparse.Namespace, device: torch.device, folder: Path) -> JanusModel:
    """Random weights, made on the device."""
    from transformers import JanusForConditionalGeneration

    side, grid = (SIDE, GRID) if args.tiny else (VISION["image_size"], 24)
    tokenizer = write_processor(folder, side, grid)
    config = JanusConfig(
        type="janus",
        pretrained=str(folder),
        lora=LoraConfig(rank=args.lora, alpha=2.0 * args.lora) if args.lora else None,
        dtype="bfloat16",
        gradient_checkpointing=args.checkpointing,
    )
    torch.manual_seed(0)
    with device:
        network = JanusForConditionalGeneration(janus_config(tokenizer) if args.tiny else geometry(tokenizer))
    processor = load_processor(folder, "janus")
    prepared = prepare(network, processor, config, device, part_of)
    return JanusModel(prepared, processor, config, device, about="Random weights of Janus-Pro-1B's geometry.")


def flops(model: JanusModel, rows: int, prompts: int, prompt: int, written: int, *, image: bool) -> float:
    """Of one forward pass: 2 a weight and token, and 4 d a layer for each key that a token sees.

    Args:
        rows: that are written, of `written` tokens each.
        prompts: distinct ones, of `prompt` tokens each.
        image: whether tokens of images are written, whose head is another.
    """
    network: Any = model.network
    plain = network.get_base_model() if hasattr(network, "get_base_model") else network
    trunk = sum(p.numel() for p in plain.model.language_model.layers.parameters())
    head = plain.model.generation_head if image else plain.lm_head
    of_head = sum(p.numel() for p in head.parameters())
    settings = plain.config.text_config
    tokens = prompts * prompt + rows * written
    keys = prompts * prompt**2 / 2 + rows * (written * prompt + written**2 / 2)
    return decoder_forward(
        trunk,
        of_head,
        settings.hidden_size,
        settings.num_hidden_layers,
        tokens=tokens,
        predicted=rows * written,
        keys=keys,
    )


def scored(rollouts: Sequence[Rollout], count: int) -> Scored:
    return Scored(rollouts, torch.randn(count, generator=torch.Generator().manual_seed(1)), torch.ones(count))


def measure(args: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, Any]:
    """Medians over the rounds."""
    model = build(args, device, folder)
    policy: UnifiedPolicy = UNIFIED.policy(model, keep_reference=False)
    world, settings = World(rank=0, size=1, device=device), DapoConfig(type="dapo")
    updaters = {
        task: _updater(policy, settings, args.update_micro_batch, world, task) for task in ("generate", "understand")
    }
    size = SIDE if args.tiny else VISION["image_size"]
    Image.effect_noise((size, size), 64).convert("RGB").save(folder / "shown.png")
    shown = (str(folder / "shown.png"),)
    count = args.batch // GROUP
    drawn = [Prompt(f"d{n}", "draw red disc " * 8, task="generate") for n in range(count)]
    asked = [Prompt(f"q{n}", "what color is the disc ?", source_images=shown) for n in range(count)]
    plans = {
        "generate": ImagePlan(args.micro_batch, guidance_scale=args.guidance),
        "understand": TokenPlan(args.micro_batch, args.answer),
    }
    seen: dict[str, list[tuple[float, float, int]]] = {task: [] for task in plans}
    for number in range(args.rounds + 1):
        for task, prompts in (("generate", drawn), ("understand", asked)):
            given = (prompts, GROUP, range(args.batch), plans[task])
            took, rollouts = seconds(device, lambda g=given: list(policy.sample(*g)))
            fed = {task: scored(rollouts, args.batch)}
            updated, row = seconds(device, lambda f=fed, t=task, n=number: updaters[t].step(f, n))
            assert row[f"{task}/ratio/mean"] == 1 or abs(row[f"{task}/ratio/mean"] - 1) < 1e-3, row
            tokens = sum(int(each.logp_BS.numel() if each.mask_BS is None else each.mask_BS.sum()) for each in rollouts)
            if number:
                seen[task].append((took, updated, tokens))
    return _rates(args, model, device, seen, len(model.read_drawing(drawn[0]).cond_T), len(model.read(asked[0]).ids_T))


def _updater(policy: UnifiedPolicy, settings: ObjectiveConfig, size: int, world: World, task: str) -> Updater:
    optim = OptimConfig(lr=1e-6, micro_batch_size=size)
    engine = build_engine(policy.trainable, optim, DistributedConfig(), world)
    member: Objective = build_objective(policy, settings, micro_batch_size=size, seed=0)
    return Updater(Tasks({task: (1.0, member)}), engine, optim, world, max_steps=1_000_000)


def _rates(
    args: argparse.Namespace,
    model: JanusModel,
    device: torch.device,
    seen: dict[str, list[tuple[float, float, int]]],
    drawing: int,
    question: int,
) -> dict[str, Any]:
    """Rates of each task, and model FLOPs a second of sampling and update."""
    middle: dict[str, tuple[float, ...]] = {
        task: tuple(statistics.median(values) for values in zip(*rounds, strict=True)) for task, rounds in seen.items()
    }
    branches, count = 1 if args.guidance == 1 else 2, args.batch // GROUP
    num = model.num_image_tokens
    draw_s, draw_update_s, _ = middle["generate"]
    write_s, write_update_s, words = middle["understand"]
    of_images = flops(model, branches * args.batch, branches * count, drawing, num, image=True)
    of_words = flops(model, args.batch, count, question, round(words / args.batch), image=False)
    weights = sum(p.numel() for p in model.language_model(model.network).parameters()) * 2  # bytes in bfloat16
    reads = args.batch / args.micro_batch * num
    return {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "trained": sum(p.numel() for p in model.network.parameters() if p.requires_grad),
        "images_per_s": args.batch / draw_s,
        "image_tokens_per_s": args.batch * num / draw_s,
        "answer_tokens_per_s": words / write_s,
        "update_images_per_s": args.batch / draw_update_s,
        "update_answers_per_s": args.batch / write_update_s,
        "draw_flops_per_s": of_images / draw_s,
        "write_flops_per_s": of_words / write_s,
        "update_images_flops_per_s": 3 * of_images / draw_update_s,
        "update_answers_flops_per_s": 3 * of_words / write_update_s,
        "read_share": reads * weights / copy_rate(device) / draw_s,
        "peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--batch", type=int, default=64, help=f"Samples of each task, a multiple of {GROUP}.")
    parser.add_argument("--micro-batch", type=int, default=32, help="Samples drawn together.")
    parser.add_argument("--update-micro-batch", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=5.0, help="1 is none, and one branch.")
    parser.add_argument("--answer", type=int, default=128, help="Tokens after which an answer is cut off.")
    parser.add_argument("--lora", type=int, default=0, help="Rank of adapters; 0 trains the language model.")
    parser.add_argument("--checkpointing", action="store_true", help="Gradient checkpointing.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="The tests' own Janus.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/gpu_janus.json"))
    args = parser.parse_args(words)
    device = torch.device(args.device)
    rate = matrix_rate(device, 256 if args.tiny else 8192)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(args, device, Path(folder))
    sheet = peak_tflops(device, None)
    mfu = {
        f"mfu_{key.removesuffix('_flops_per_s')}": row.pop(key) / rate
        for key in list(row)
        if key.endswith("flops_per_s")
    }
    facts = {
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "matrix_tflops": rate / 1e12,
        **row,
        **mfu,
        "arguments": {key: str(value) for key, value in vars(args).items()},
    }
    if sheet is not None:
        facts |= {f"{key}_of_data_sheet": value * rate / (sheet * 1e12) for key, value in mfu.items()}
    print("| quantity | value |\n|---|---|")
    for key, value in facts.items():
        if key != "arguments":
            print(f"| {key} | {value:.4g} |" if isinstance(value, float) else f"| {key} | {value} |")
    write_results(args.out, "gpu_janus", [facts])
    return 0


if __name__ == "__main__":
    sys.exit(main())
