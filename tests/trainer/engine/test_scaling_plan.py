"""docs/scaling.md shows what the script computes, and the formulas give the textbook's values in simple cases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_sd35 import MEDIUM, TEXT_TOKENS
from benchmarks.scaling_plan import FORWARD_TFLOP, FP32, PARAMETERS, Plan, replaced, report
from trainer.policies.flow.sd3_tokens import Sd3Transformer

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_what_the_script_writes() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert replaced(page, report(Plan())) == page, "run: python benchmarks/scaling_plan.py --write docs/scaling.md"


def test_stages_on_two_gpus() -> None:
    """ZeRO (arXiv 1910.02054), section 7: stages 1 and 2 send as much as data parallelism when there is one backward
    pass; ours has one per denoising step and micro-batch."""
    plan = Plan(gpus=2, group_size=4, update_micro_batch=4, trained_steps=1, inference_steps=1, rollout_micro_batch=4)
    half = FP32 * PARAMETERS / 2
    assert [plan.sent_bytes(stage) / half for stage in range(4)] == [2, 2, 2, 1 + 3]
    # Weights, gradients, two moments and the average; from stage 1 on also the optimizer's copy of the weights.
    assert [plan.resident_bytes(stage) / half / 2 for stage in range(4)] == [5, 4.5, 4, 3]


@pytest.mark.slow
def test_the_work_of_a_velocity_is_counted() -> None:
    """On the meta device, where tensors have shapes and no data. A batch of 2 is guidance."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = Sd3Transformer(**MEDIUM)
        network(
            hidden_states=torch.zeros(2, 16, 512 // 8, 512 // 8),
            encoder_hidden_states=torch.zeros(2, TEXT_TOKENS, MEDIUM["joint_attention_dim"]),
            pooled_projections=torch.zeros(2, MEDIUM["pooled_projection_dim"]),
            timestep=torch.zeros(2),
            return_dict=False,
        )
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS
    assert counter.get_total_flops() / 1e12 == pytest.approx(FORWARD_TFLOP, rel=1e-3), (
        "torch may count an operation anew"
    )


def test_a_step_is_the_work_of_its_velocities() -> None:
    """One velocity in the rollout; forward and backward in the update, which is three of them."""
    plan = Plan(gpus=1, group_size=1, inference_steps=1, trained_steps=1, peak_tflops=FORWARD_TFLOP, utilisation=1.0)
    assert (plan.rollout_s, plan.update_s, plan.step_s) == (1.0, 3.0, 4.0)


def test_a_page_without_its_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="must hold the lines"):
        replaced("# Page", "table")
