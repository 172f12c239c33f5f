"""A run whose objective has a state of its own goes on exactly: the sampling policy's weights, and what is drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.trainer_runs import read_metrics, run_trainer, saved_weights

pytestmark = pytest.mark.slow  # whole runs in processes of their own


def test_diffusion_nft_with_a_sampling_policy_and_pictures_beside_it(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """DiffusionNFT, old_decay and a supervised loss: cut after two of four steps, the run is the one that was not cut."""
    Image.fromarray(np.full((24, 48, 3), 90, np.uint8)).save(tmp_path / "a.png")
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"image_path": "a.png", "txt": 'the word "CAT" in blue'}]))
    changes = {
        "objective": {"type": "diffusion_nft", "old_decay": 0.5, "old_decay_steps": 4, "timestep_draws": 2},
        "sft": {"path": str(data), "batch_size": 2, "coef": 0.1},
        "optim": {"lr": 1e-3, "schedule": "constant"},
        "evaluation": {},
        "max_steps": 4,
    }
    run_trainer(recipe("whole", **changes))
    for max_steps in (2, 4):
        run_trainer(recipe("cut", **(changes | {"max_steps": max_steps})))
    whole, cut = (tmp_path / "outputs" / name / "checkpoints" / "step_000004" for name in ("whole", "cut"))
    for kind in ("weight", "old"):
        for name, tensor in saved_weights(whole, kind).items():
            assert torch.equal(tensor, saved_weights(cut, kind)[name]), (kind, name)
    old, trained = saved_weights(whole, "old"), saved_weights(whole)
    assert any(not torch.equal(old[name], trained[name]) for name in old)
    rows = read_metrics(tmp_path / "outputs" / "whole")
    assert rows == read_metrics(tmp_path / "outputs" / "cut")
    assert all(row["loss/sft"] > 0 and row["sft/skipped"] == 0 and row["nft/drift"] > 0 for row in rows[2:])
