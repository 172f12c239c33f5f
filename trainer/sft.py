"""Supervised pre-training of the tiny policy: rectified flow on rendered words with careless captions.

The base that RL starts from imitates its captions, mistakes included: that is what web-scale pre-training does, and
what RL then removes. `python -m trainer sft configs/quickstart_base.yaml`.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from trainer.config import SftConfig
from trainer.policies.flow.tiny_model import PAD, TinyModel, token_tensor
from trainer.processes.distributed import pick_device
from trainer.quickstart.words import Word, corrupt, draw_word, render
from trainer.update.ema import Ema

PCA_PICTURES = 6000
PROMPT_DROPOUT = 0.1  # for classifier-free guidance
TIME_MEAN, TIME_STD = 0.2, 1.0  # t = sigmoid(N(mean, std)): arXiv 2403.03206, section 3.1


def pictures(words: list[Word], rng: random.Random) -> Tensor:
    """(B, 3, 24, 48) float32 in [-1, 1]."""
    pixels = np.stack([np.asarray(render(word, rng)) for word in words])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def flow_loss(model: TinyModel, latents: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the rectified-flow velocity (noise - data), arXiv 2209.03003, equation 1."""
    device = latents.device  # the numbers are drawn on the CPU, so that they are the same on every device
    time_B = torch.sigmoid(TIME_MEAN + TIME_STD * torch.randn(len(latents), generator=generator)).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    dropped = (torch.rand(len(latents), generator=generator) < PROMPT_DROPOUT).to(device)
    tokens = tokens.masked_fill(dropped[:, None], PAD)
    time = time_B[:, None, None, None]
    states, pooled = model.text(tokens)
    predicted = model.velocity((1 - time) * latents + time * noise, time_B, states, pooled)
    return torch.mean((predicted - (noise - latents)) ** 2)


class SftOptimizer:
    """Muon (Newton-Schulz on block matrices) and AdamW (everything else), one schedule: warm-up, flat, linear decay."""

    def __init__(self, model: TinyModel, config: SftConfig) -> None:
        def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
            return "transformer_blocks" in name and parameter.dim() == 2

        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon([p for n, p in named if is_block_matrix(n, p)], lr=config.optim.muon_lr, weight_decay=0.0),
            torch.optim.AdamW([p for n, p in named if not is_block_matrix(n, p)], lr=config.optim.adamw_lr),
        ]
        self.config = config

    def step(self, step: int) -> None:
        """Apply the gradients of step `step` (from 0) and clear them."""
        optim, total = self.config.optim, self.config.max_steps
        warmup = min(1.0, (step + 1) / max(optim.warmup_steps, 1))
        decay = min(1.0, (total - step) / max(optim.decay_share * total, 1.0))
        for optimizer, lr in zip(self.optimizers, (optim.muon_lr, optim.adamw_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(warmup, decay)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def about(config: SftConfig, parameters: int, seconds: float) -> str:
    """The paragraph that travels with the weights and is shown wherever their results are."""
    return (
        f"A text-to-image model of {parameters / 1e6:.1f} million parameters (an SD3 transformer, 24x48 pixels), trained "
        f"from random weights for {config.max_steps} steps ({seconds / 60:.0f} minutes on {torch.get_num_threads()} CPU "
        "threads) on rendered words whose captions are often wrong, "
        f"as captions from the web are: {config.words.char_noise:.0%} of the characters and "
        f"{config.words.color_noise:.0%} of the colours. It imitates that noise; reinforcement learning removes it. "
        "Words kept for evaluation were never drawn in its training, by a rule on the word itself."
    )


def train_base(config: SftConfig) -> Path:
    """Pre-train and write `config.output`. Returns its path."""
    torch.manual_seed(config.seed)
    if config.distributed.num_threads:
        torch.set_num_threads(config.distributed.num_threads)
    device = pick_device(config.distributed.device)
    rng, generator = random.Random(config.seed), torch.Generator().manual_seed(config.seed)
    model = TinyModel(config.policy)
    model.codec.fit(pictures([draw_word(rng, heldout=False) for _ in range(PCA_PICTURES)], rng))
    model.to(device)
    average = Ema(model, config.optim.ema_decay)
    optimizer = SftOptimizer(model, config)
    run_dir = Path(config.output_dir) / config.run_name
    run_dir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (run_dir / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for step in tqdm(range(config.max_steps), desc="pre-training", unit="step", mininterval=1.0):
            words = [draw_word(rng, heldout=False) for _ in range(config.optim.batch_size)]
            captions = [corrupt(w, rng, config.words.char_noise, config.words.color_noise).prompt for w in words]
            latents = model.codec.encode(pictures(words, rng).to(device))
            loss = flow_loss(model, latents, token_tensor(captions, device), generator)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step(step)
            average.update(min(config.optim.ema_decay, (1 + step) / (10 + step)))  # a short memory while young
            if (step + 1) % config.log_every == 0:
                row = {"step": step + 1, "loss/flow": loss.item(), "time/total": time.monotonic() - started}
                log.write(json.dumps(row) + "\n")
                log.flush()
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.writing")  # renamed when whole, so that a kill leaves no half a file
    with average.applied():
        model.save(unfinished, about(config, sum(p.numel() for p in model.parameters()), time.monotonic() - started))
    unfinished.replace(output)
    return output
