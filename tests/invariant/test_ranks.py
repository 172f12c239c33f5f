"""One rank and two ranks (gloo) take the same steps; so do other micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.compare_runs import assert_same_run
from tests.support.trainer_runs import run_trainer


@pytest.fixture(scope="module")
def made() -> list[Path]:
    """The run that the others are compared with, once it is made."""
    return []


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (2, {}),
        (1, {"sampling__micro_batch_size": 4, "sampling__prompts_per_step": 4}),
        (1, {"optim__micro_batch_size": 1}),
    ],
    ids=["two-ranks", "sampled-in-fours", "updated-one-by-one"],
)
def test_equivalent_runs(
    recipe: Callable[..., Path], tmp_path: Path, made: list[Path], ranks: int, changes: dict[str, Any]
) -> None:
    if not made:
        run_trainer(recipe("one"))
        made.append(tmp_path / "outputs" / "one")
    run_trainer(recipe("other", **changes), ranks=ranks)
    assert_same_run(made[0], tmp_path / "outputs" / "other")
