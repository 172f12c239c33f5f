"""The resident memory of a scorer that works for long."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from benchmarks.hps_reference import SMALL, Tower, random_checkpoint
from services.hps.checkpoint import inspect
from services.hps.scorer import HpsScorer
from services.kit.scorer import Item, Score

CALLS, WARM = 10_000, 1_000
MIB = 1024 * 1024


@pytest.mark.slow
def test_memory_is_flat_over_10000_calls(tmp_path: Path, vocabulary: Path) -> None:
    """Every call has another prompt and an image of another size, so anything kept by content would show."""
    size = replace(SMALL, vision=Tower(64, 1, 1), text=Tower(64, 1, 1), image_size=28)
    torch.save(random_checkpoint(size, 0), tmp_path / "HPS_v2.pt")
    scorer = HpsScorer(inspect(tmp_path / "HPS_v2.pt"), vocabulary, device="cpu")
    scorer.load()
    rng, pixels = random.Random(0), np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    canvas = Image.fromarray(pixels)
    process = psutil.Process()
    resident = []
    for call in range(CALLS):
        image = canvas.crop((0, 0, rng.randint(1, 96), rng.randint(1, 96)))
        [result] = scorer.score("hpsv2", [Item(id="0", prompt=f"picture {rng.random()}", images=(image,))])
        assert isinstance(result, Score)
        if call % WARM == WARM - 1:
            resident.append(process.memory_info().rss / MIB)
    assert max(resident) - resident[0] < 16, resident
