"""The benchmark on a GPU runs, has the published geometries, and says what a CPU leaves out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_bagel
from trainer.policies.unified.mot.geometry import Geometry
from trainer.policies.unified.mot.network import MotNetwork
from trainer.policies.unified.neo.sizes import shapes


def test_it_runs_at_small_size_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "found.json"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "gpu_bagel.py",
            "--device=cpu",
            "--tiny",
            "--tokens=800",
            "--compare-tokens=150",
            "--rounds=1",
            f"--out={out}",
        ],
    )
    assert gpu_bagel.main() == 0
    rows = {row["model"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    assert rows.keys() == {"mot", "neo"}
    for row in rows.values():
        assert row["fits"] and row["rows"] > 1 and 400 < row["pack_tokens"] <= 800 and row["tokens_per_s"] > 0
        assert row["forecast_gib"] > row["held_gib"] and "peak_gib" not in row
        assert "on a GPU alone" in row["flex_left_out"] and "flex_out" not in row


def test_its_geometries_are_the_published_ones() -> None:
    """14.6 billion parameters of BAGEL, and NEO-2B's layers on Qwen3-1.7B."""
    with torch.device("meta"):
        network = MotNetwork(Geometry(gpu_bagel.BAGEL, gpu_bagel.SIGLIP, 64, 64))
    assert round(sum(each.numel() for each in network.parameters()) / 1e9, 2) == 14.61
    neo = gpu_bagel.NEO
    assert (neo.num_layers, neo.extra_layers, neo.stride) == (40, 12, 32)
    assert len(shapes(neo)) == 40 * 17 + 3 + 4
