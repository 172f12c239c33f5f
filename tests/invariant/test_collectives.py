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
EXPECTED: dict[str, int] = {}


@pytest.mark.slow
def test_the_collectives_of_a_step_are_these(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    """Two ranks, two rewards, GDPO with a floor, one update a step, its gradient begun early."""
    config = recipe(max_steps=STEPS, evaluation={}, checkpoint={"save_every": 1000})
    out = tmp_path / "counts.json"
    run_ranks(COUNTED, str(out), "train", str(config), ranks=2, output=tmp_path / "printed")
    steps = json.loads(out.read_text())
    assert len(steps) == STEPS
    for counts in steps[1:]:  # the first also agrees on what is agreed on once
        print(json.dumps(counts, indent=1))
        assert counts["programs/rl:await_scores"] >= 1
        assert {who: count for who, count in counts.items() if who not in WAITING} == EXPECTED
