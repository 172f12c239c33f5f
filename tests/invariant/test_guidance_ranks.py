"""A gradient through the conditional half of guidance is the same on two ranks of sharded weights, whatever their prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.guidance_ranks import PLAN, updates_of
from tests.support.rank_cases import cases_on_ranks
from tests.support.tiny_updates import WORLD

pytestmark = pytest.mark.slow  # processes of their own, with DeepSpeed


def test_two_ranks_of_sharded_weights_call_the_network_as_often_and_take_the_step_of_one(tmp_path: Path) -> None:
    expected = updates_of(WORLD)
    assert all(expected["exact"]) and expected["norms"][0] > 0
    ranks = cases_on_ranks("tests.support.guidance_ranks", tmp_path, "zero2", "zero3")
    steps = PLAN.num_inference_steps + len(PLAN.trained_steps)
    for name in ("zero2", "zero3"):
        assert [rank[name]["calls"] for rank in ranks] == [2 * 2 * steps] * 2, (
            "two passes a step in each of two updates"
        )
        assert all(all(rank[name]["exact"]) for rank in ranks), "first ratios are 1"
        assert ranks[0][name]["norms"] == pytest.approx(expected["norms"], rel=1e-3)
