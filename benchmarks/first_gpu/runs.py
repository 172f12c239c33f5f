"""Whole runs of the trainer without any service: the program that teaches the quickstart's base, made small."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.first_gpu.setting import Setting
from trainer.checkpoint import Checkpoint

STEPS = 4


def run(setting: Setting, name: str, *words: str, steps: int = STEPS) -> Path:
    """Train, or go on with, the run of that name; gives its folder."""
    sizes = {"num_layers": 2, "num_heads": 2, "head_dim": 16} if setting.tiny else {}
    setting.trainer(
        "sft",
        "configs/quickstart_base.yaml",
        f"run_name={name}",
        f"output_dir={setting.scratch}",
        f"quickstart.output={setting.scratch / name}.safetensors",
        f"quickstart.batch_size={8 if setting.tiny else 128}",
        f"max_steps={steps}",
        "optim={lr: 1.0e-3, schedule: constant}",
        "checkpoint={save_every: 2, keep: 4}",
        "logging={report_to: [], report_every: 100000}",
        *(f"policy.{key}={value}" for key, value in sizes.items()),
        *words,
    )
    return setting.scratch / name


def tensors(folder: Path, step: int = STEPS) -> dict[str, Tensor]:
    """All that a checkpoint has of the parameters: weights, moments, averages, each by its own name."""
    saved = Checkpoint.open(folder / "checkpoints" / f"step_{step:06d}")
    return {f"{name} {kind}": value for name in saved.names for kind, value in saved.read(name).items()}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference by the largest number of its tensor; of what both have."""
    return max(
        float((a[name].double() - b[name].double()).abs().max() / b[name].double().abs().max().clamp_min(1e-12))
        for name in a.keys() & b.keys()
    )


def alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metrics(folder: Path) -> list[dict[str, float]]:
    """A run's rows."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
