"""How often the ranks of an RL run meet in a step, and who asks for it: listed, and no more than is written here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.forked import run_ranks

COUNTED = "tests.support.counted_collectives"
STEPS = 3
# Those of waiting for scores: one for each look whether they are there, at least one; and one for each part of an early update.
WAITING = {"programs/rl:await_scores", "programs/early:advance"}
# All others, a step of one update without evaluation and save.
EXPECTED = {
    "programs/session:stop_requested": 1,
    "programs/early:__init__": 1,
    "programs/session:stop_together": 1,
    "advantages/statistics:moments": 4,  # of the spreads, and of the batch
    "records/step_metrics:advantage_metrics": 1,
    "programs/early:factor": 1,
    "programs/early:finish": 1,
    "update/work:plan_work": 1,
    "engine/reduction:_send": 1,  # a bucket each
    "update/updater:apply": 1,
    "engine/local:step": 1,
    "update/tally:metrics": 1,
    "records/step_metrics:reward_metrics": 1,
    "records/step_metrics:wait_metrics": 1,
    "evaluation/rollout_statistics:rollout_statistics": 1,
    "records/text_metrics:text_metrics": 1,
}


@pytest.mark.slow
def test_the_collectives_of_a_step_are_these(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    """Two ranks, two rewards, GDPO with a floor, one update a step, its gradient begun early."""
    config = recipe(max_steps=STEPS, evaluation={}, checkpoint={"save_every": 1000})
    out = tmp_path / "counts.json"
    run_ranks(COUNTED, str(out), "train", str(config), ranks=2, output=tmp_path / "printed")
    steps = json.loads(out.read_text())
    assert len(steps) == STEPS
    for counts in steps[1:]:  # the first also agrees on what is agreed on once
        assert counts["programs/rl:await_scores"] >= 1
        assert {who: count for who, count in counts.items() if who not in WAITING} == EXPECTED
