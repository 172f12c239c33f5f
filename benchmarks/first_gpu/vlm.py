"""A vision-language model of SmolVLM-Instruct's geometry with random weights: answers about an image, and their update."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.first_gpu.flops import decoder_forward, training_factor
from benchmarks.first_gpu.rates import matrix_rate, seconds
from benchmarks.first_gpu.rows import Row
from benchmarks.first_gpu.sd3 import replayed
from benchmarks.first_gpu.setting import Setting
from tests.support.tiny_vlm import SIDE, vlm_config, write_processor
from trainer.config import DistributedConfig, OptimConfig, VlmConfig
from trainer.config.token_objective import DapoConfig
from trainer.engine import build_engine
from trainer.objectives import Scored, build_objective
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.family import TOKENS
from trainer.policies.tokens.model import TokenModel
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.preparing import prepare
from trainer.policies.tokens.processors import load_processor
from trainer.processes.distributed import World
from trainer.types import Prompt, Rollout
from trainer.update.updater import Updater

# HuggingFaceTB/SmolVLM-Instruct's published config.json, in transformers' words: Idefics3 of SigLIP so400m and SmolLM2-1.7B.
TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 49155,
    "max_position_embeddings": 16384,
}
VISION = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
TILE, PATCH, SHRINKS, IMAGE_TOKENS = 384, 14, 3, 81  # 27² patches, of which 3 x 3 become a token
GROUP = 8


def geometry(tokenizer: Any) -> Any:
    """transformers' configuration, with this tokenizer's ids; head and embeddings are two, as published."""
    from transformers import Idefics3Config

    small = vlm_config(tokenizer)
    text = small.text_config.to_dict() | TEXT | {"head_dim": 64, "tie_word_embeddings": False}
    vision = VISION | {"image_size": TILE, "patch_size": PATCH}
    ids = {"image_token_id": small.image_token_id, "pad_token_id": tokenizer.pad_token_id}
    return Idefics3Config(
        vision_config=vision, text_config=text, scale_factor=SHRINKS, tie_word_embeddings=False, **ids
    )


def build(setting: Setting) -> TokenPolicy:
    """Random weights, made on the device."""
    from transformers import Idefics3ForConditionalGeneration

    folder, device = setting.scratch, setting.device
    tokenizer = write_processor(folder) if setting.tiny else write_processor(folder, TILE, IMAGE_TOKENS)
    config = VlmConfig(type="vlm", pretrained=str(folder), freeze=("vision",), dtype="bfloat16")
    torch.manual_seed(0)
    with device:
        network = Idefics3ForConditionalGeneration(vlm_config(tokenizer) if setting.tiny else geometry(tokenizer))
    processor = load_processor(folder, network.config.model_type)
    network = prepare(network, processor, config, device)
    model = TokenModel(network, processor, config, device, about="Random weights of SmolVLM-Instruct's geometry.")
    policy: TokenPolicy = TOKENS.policy(model, keep_reference=False)
    return policy


def measure(setting: Setting) -> Iterator[Row]:
    count, answer, micro = (8, 4, 8) if setting.tiny else (64, 64, 32)
    device = setting.device
    rate = matrix_rate(device, 256 if setting.tiny else 8192)
    policy, world = build(setting), World(0, 1, device)
    optim = OptimConfig(lr=1e-6, micro_batch_size=8)
    engine = build_engine(policy.trainable, optim, DistributedConfig(), world)
    objective = build_objective(policy, DapoConfig(type="dapo"), micro_batch_size=8, seed=0)
    updater = Updater(objective, engine, optim, world, max_steps=1_000_000)
    prompts = _prompts(setting.scratch, SIDE if setting.tiny else TILE, count // GROUP)
    scores = torch.randn(count, generator=torch.Generator().manual_seed(1)), torch.ones(count)
    setting.forget_peak()
    rounds = []
    for number in range(2 if setting.tiny else 3):
        written_s, rollouts = seconds(
            device, lambda: list(policy.sample(prompts, GROUP, range(count), TokenPlan(micro, answer)))
        )
        if number == 0:
            yield from replayed(
                setting, policy, rollouts, exact=False, note="drawn token by token; clip ranges of texts are .2"
            )
        updated_s, _ = seconds(device, lambda r=rollouts, n=number: updater.step(Scored(r, *scores), n))
        rounds.append((written_s, updated_s, float(_written(rollouts))))
    written_s, updated_s, tokens = (statistics.median(each) for each in zip(*rounds[1:], strict=True))
    weights = list(policy.trainable.parameters())
    yield setting.row("parameters", sum(p.numel() for p in weights), note="the vision encoder is frozen")
    yield setting.row(
        "answer tokens/s", tokens / written_s, note=f"{count} answers to {len(prompts)} questions, {micro} at a time"
    )
    yield setting.row("update, answers/s", count / updated_s)
    forward = _forward(policy, len(prompts), len(policy.model.read(prompts[0]).ids_T), count, round(tokens / count))
    trained = training_factor(1, 1) * forward / updated_s / rate
    yield setting.row(
        "update: MFU of the decoder", trained, note="of the measured rate; each prompt once, padding is no work"
    )
    yield setting.row("peak of memory, GiB", setting.peak_gib())


def _prompts(folder: Path, side: int, count: int) -> list[Prompt]:
    Image.effect_noise((side, side), 64).convert("RGB").save(folder / "shown.png")
    shown = (str(folder / "shown.png"),)
    return [Prompt(f"q{n}", "what color is the disc ?", source_images=shown) for n in range(count)]


def _written(rollouts: Sequence[Rollout]) -> int:
    return sum(int(each.logp_BS.numel() if each.mask_BS is None else each.mask_BS.sum()) for each in rollouts)


def _forward(policy: TokenPolicy, prompts: int, prompt: int, rows: int, written: int) -> float:
    """FLOPs of one pass of the decoder over all prompts and answers."""
    network: Any = policy.trainable
    settings = network.config.text_config
    return decoder_forward(
        sum(p.numel() for p in network.model.text_model.layers.parameters()),
        sum(p.numel() for p in network.lm_head.parameters()),
        settings.hidden_size,
        settings.num_hidden_layers,
        tokens=prompts * prompt + rows * written,
        predicted=rows * written,
        keys=prompts * prompt**2 / 2 + rows * (written * prompt + written**2 / 2),
    )
