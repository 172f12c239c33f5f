"""Whole runs of tiny SD3, FLUX.1 and Qwen-Image against the rules service: they train, and resume bit for bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_pipelines import make_flux, make_qwen_image, make_sd3
from tests.support.trainer_runs import ROOT, read_metrics, saved_weights
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train

LORA = {"rank": 4, "alpha": 8.0}
MAKERS: dict[str, Callable[[Path], Path]] = {"sd3": make_sd3, "flux": make_flux, "qwen_image": make_qwen_image}


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        pytest.param("sd3", None, id="sd3-full", marks=pytest.mark.slow),
        pytest.param("sd3", LORA, id="sd3-lora", marks=pytest.mark.slow),
        pytest.param("flux", LORA, id="flux-lora"),
        pytest.param("qwen_image", LORA, id="qwen_image-lora"),
    ],
)
def test_a_run_trains_and_resumes_bit_for_bit(
    recipe: Callable[..., Path], tmp_path: Path, kind: str, lora: dict[str, Any] | None
) -> None:
    """Two steps with a KL to the start; the second also as a run of its own that goes on from the first."""
    settings: dict[str, Any] = {
        "policy": {
            "type": kind,
            "pretrained": str(MAKERS[kind](tmp_path / kind)),
            "lora": lora,
            "dtype": "float32",
            "max_sequence_length": 16,
            "embedding_cache": str(tmp_path / "embeddings"),
        },
        "sampling__prompts_per_step": 2,
        "sampling__height": 16,
        "sampling__width": 16,
        "sampling__shift": None,
        "sampling__guidance_scale": 2.0,
        "objective": {"kl_beta": 0.01},
        "evaluation": {},
        "max_steps": 2,
    }
    for name, overrides in (("whole", []), ("parts", ["max_steps=1"]), ("parts", [])):
        assert train(load_config(recipe(name, **settings), Config, overrides)) == 0
    whole, parts = tmp_path / "outputs" / "whole", tmp_path / "outputs" / "parts"
    rows = read_metrics(whole)
    assert [row["step"] for row in rows][-2:] == [1, 2]
    for row in rows[-2:]:  # one update a step: every ratio is taken before the weights move
        assert row["ratio/max"] == row["ratio/min"] == 1.0
    assert rows[-2]["kl"] == 0.0 < rows[-1]["kl"]
    first, last = (saved_weights(whole / "checkpoints" / f"step_00000{step}") for step in (1, 2))
    assert all(".lora_" in name for name in last) == (lora is not None)
    assert not all(torch.equal(last[name], first[name]) for name in last)
    resumed = saved_weights(parts / "checkpoints" / "step_000002")
    assert resumed.keys() == last.keys() and all(torch.equal(resumed[name], last[name]) for name in last)


@pytest.mark.slow
def test_nobody_is_told_to_install_torchvision(tmp_path: Path) -> None:
    """transformers says so at the first import of a pipeline; a process of its own sees that."""
    code = (
        "import sys, torch; from trainer.config import Sd3Config; from trainer.policies.registry import build_policy; "
        "config = Sd3Config(type='sd3', pretrained=sys.argv[1], dtype='float32'); "
        "build_policy(config, torch.device('cpu'), keep_reference=False); "
        "import logging; logging.getLogger('transformers').warning('what else it says is shown')"
    )
    command = [sys.executable, "-c", code, str(make_sd3(tmp_path / "sd3"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "torchvision" not in done.stderr and "what else it says is shown" in done.stderr
