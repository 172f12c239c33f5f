"""HPSv2.1's scores in bfloat16 beside those in float32, and images a second of both."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig

from benchmarks.first_gpu.rates import seconds
from benchmarks.first_gpu.rows import Row
from benchmarks.first_gpu.setting import Setting
from benchmarks.hps_reference import SMALL, VIT_H_14, random_checkpoint
from services.hps.checkpoint import inspect
from services.hps.convert import to_clip_state
from services.hps.model import HpsModel, build, load_model

Dtype = Literal["bf16", "fp32"]
START, END = 49_406, 49_407  # CLIP's tokens around a text


def measure(setting: Setting) -> Iterator[Row]:
    path = os.environ.get("HPS_CHECKPOINT")
    images, texts = (4, 2) if setting.tiny else (64, 8)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (512, 512, 3), np.uint8)) for _ in range(images)]
    ids = [[START, *rng.integers(1, START, 10).tolist(), END, *[0] * 65] for _ in range(texts)]
    pairs = [(number % texts, picture) for number, picture in enumerate(pictures)]
    found: dict[str, torch.Tensor] = {}
    took: dict[str, float] = {}
    for dtype in ("fp32", "bf16"):
        model = _model(setting, path, dtype)
        model.cosines(ids, pairs[:2], 8)  # what is done once is not timed
        took[dtype], scores = seconds(setting.device, lambda m=model: m.cosines(ids, pairs, 64))
        found[dtype] = torch.tensor(scores, dtype=torch.float64)
        del model
    note = (
        f"weights of {path}" if path else "RANDOM weights: HPS_CHECKPOINT names none, so this is rounding, not quality"
    )
    apart = (found["bf16"] - found["fp32"]).abs()
    yield setting.row("bf16 - fp32, largest score", float(apart.max()), note=note)
    yield setting.row(
        "bf16 - fp32, mean",
        float(apart.mean()),
        note=f"spread of the scores {float(found['fp32'].std()):.2g}; images of noise",
    )
    pairs_of = [(a, b) for a, b in itertools.combinations(range(images), 2) if a % texts == b % texts]
    same = [(found["bf16"][a] - found["bf16"][b]) * (found["fp32"][a] - found["fp32"][b]) > 0 for a, b in pairs_of]
    yield setting.row(
        "pairs of one prompt in the same order", float(torch.tensor(same).double().mean()), note=f"of {len(same)}"
    )
    for dtype, took_s in took.items():
        yield setting.row(f"{dtype}, images/s", images / took_s, note="512 x 512, resizing included")


def _model(setting: Setting, path: str | None, dtype: Dtype) -> HpsModel:
    if path:
        return load_model(inspect(Path(path)), END + 1, setting.device, dtype)
    architecture, state = to_clip_state(random_checkpoint(SMALL if setting.tiny else VIT_H_14, 0))
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    clip = build(CLIPConfig(**architecture.config()), state, setting.device, kind)
    return HpsModel(clip.train(False).requires_grad_(False), setting.device, dtype)
