"""Every ZeRO stage takes the steps that one process without DeepSpeed takes, and gives and takes whole tensors.

One start of two ranks, and one of a single process, run all stages (engine_ranks.py); the tests look at what came out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.forked import run_ranks
from tests.trainer.engine.engine_ranks import GROUPED, RARE, STAGES

Found = dict[str, dict[str, Any]]
ALONE = ("none", "none+groups", "zero2", "zero3_offload")  # a single process may want DeepSpeed for its offload
TWO = (*STAGES, *(f"{stage}+groups" for stage in GROUPED))
CASES = [(1, stage) for stage in ALONE] + [(2, stage) for stage in TWO]


def run(output: Path, ranks: int, stages: Iterable[str]) -> Found:
    run_ranks("tests.trainer.engine.engine_ranks", str(output), *stages, ranks=ranks, output=output)
    found: Found = json.loads(output.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run(tmp_path_factory.mktemp("alone") / "found.json", 1, ALONE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run(tmp_path_factory.mktemp("two") / "found.json", 2, TWO)


@pytest.mark.parametrize(("ranks", "stage"), CASES)
def test_steps_are_those_of_one_process_without_deepspeed(alone: Found, two: Found, ranks: int, stage: str) -> None:
    """The sum over ranks is the loss (DeepSpeed averages), gradients of all micro-batches count, clipping is the same."""
    found = (alone if ranks == 1 else two)[stage]
    takes_the_steps_of(alone["none+groups" if stage.endswith("+groups") else "none"], found)


def takes_the_steps_of(reference: dict[str, Any], found: dict[str, Any]) -> None:
    assert found["norms"] == pytest.approx(reference["norms"], rel=1e-6)
    assert reference["norms"][0] > 1.0, "no step was clipped"
    assert found["state"].keys() == reference["state"].keys()
    for name, tensors in reference["state"].items():
        assert found["state"][name].keys() == tensors.keys(), name
        for key, value in tensors.items():
            np.testing.assert_allclose(found["state"][name][key], value, rtol=1e-5, atol=1e-7, err_msg=f"{name} {key}")
        np.testing.assert_allclose(found["average"][name], reference["average"][name], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_two_copies_of_the_weights_on_four_ranks_take_the_steps_of_one(alone: Found, tmp_path: Path) -> None:
    """Replicas of sharded weights: each pair of ranks has a copy of its own (hpZ), and all four share gradients and moments."""
    takes_the_steps_of(alone["none"], run(tmp_path / "found.json", 4, ["zero3_hybrid"])["zero3_hybrid"])


@pytest.mark.slow
def test_an_optimizer_on_the_cpu_and_sums_during_the_pass_are_the_same_steps(alone: Found, tmp_path: Path) -> None:
    for name, found in run(tmp_path / "found.json", 2, RARE).items():
        assert found["moved"] and found["goes_on"] and found["nothing_stepped"], name
        takes_the_steps_of(alone["none"], found)


@pytest.mark.parametrize(("ranks", "stage"), CASES)
def test_a_parameter_without_a_gradient_is_left_alone(alone: Found, two: Found, ranks: int, stage: str) -> None:
    """Not even weight decay moves what no rank ever had a gradient for, and it has no moments."""
    found = (alone if ranks == 1 else two)[stage]
    for name in ("idle.weight", "idle.bias"):
        assert found["state"][name] == found["before"][name]
        assert found["state"][name].keys() == {"weight"}
    assert found["state"]["sometimes.weight"].keys() > {"exp_avg"}


@pytest.mark.parametrize("stage", [stage for stage in (*ALONE, *TWO) if stage.endswith("+groups")])
def test_groups_have_their_own_rates(alone: Found, two: Found, stage: str) -> None:
    """The first step of AdamW is the rate itself: sign(g) * lr, before decay. A group of rate 0 is frozen."""
    found = (two if stage in two else alone)[stage]
    assert "4.bias" not in found["state"], "frozen"
    for name, peak in (("0.bias", 3e-2), ("4.weight", 1e-2)):
        moved = np.abs(np.subtract(found["state_after_one"][name]["weight"], found["before"][name]["weight"]))
        assert moved.max() == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_is_one_optimizer_step(two: Found, stage: str) -> None:
    """The predecessor took 61. AdamW's own count is in its state, whatever DeepSpeed splits the weights into."""
    state = two[stage]["state"]
    assert {state[name]["step"] for name in state if not name.startswith("idle")} == {3.0}
    assert two[stage]["optimizer_steps"] == 3


@pytest.mark.parametrize("stage", STAGES)
def test_the_average_is_applied_and_taken_back(alone: Found, two: Found, stage: str) -> None:
    own, averaged, again = two[stage]["outputs"]
    assert own == again != averaged
    assert averaged == pytest.approx(alone["none"]["outputs"][1], rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_steps_nowhere(two: Found, stage: str) -> None:
    assert two[stage]["norm_of_nan"] in ("nan", "inf")
    assert two[stage]["nothing_stepped"]


@pytest.mark.parametrize(("ranks", "stage"), CASES)
def test_state_moves_to_a_fresh_engine_bit_for_bit(alone: Found, two: Found, ranks: int, stage: str) -> None:
    found = (alone if ranks == 1 else two)[stage]
    assert found["moved"] and found["goes_on"]

    assert set(found["before"]["0.weight"]) == {"weight"}
    assert set(found["state"]["0.weight"]) == {"weight", "exp_avg", "exp_avg_sq", "step"}
    assert "2.weight" not in found["state"], "frozen"
    assert "0.bias: the saved weight has shape (14,), the model's is (13,)" in found["wrong_shape"]


@pytest.mark.parametrize("stage", STAGES)
def test_one_rank_keeps_what_all_ranks_gather(two: Found, stage: str) -> None:
    assert two[stage]["one_keeps"]
    assert two[stage]["numel"] == {
        **{"0.weight": 91, "0.bias": 13, "4.weight": 13, "4.bias": 1},
        **{"idle.weight": 15, "idle.bias": 5, "sometimes.weight": 1},
    }
