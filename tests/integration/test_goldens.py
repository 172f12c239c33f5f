"""Whole runs are the same as they were, to the last bit: a rebuild moves no number.

What is compared was recorded by `python -m tests.support.goldens`. The last bits of a sum depend on the processor and on
torch, so on another machine than the recording one the small runs are compared to three digits and the quickstart,
whose tape knows images by their digest, is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import goldens
from tests.support.trainer_runs import run_trainer

QUICKSTART = goldens.ROOT / "configs" / "quickstart.yaml"
SHOWN_FAST = ("flow_grpo",)


def _compare(now: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    assert len(now["rows"]) == len(kept["rows"])
    if kept["machine"] == goldens.machine():
        for row, was in zip(now["rows"], kept["rows"], strict=True):
            assert row == was
        assert now["weights"] == kept["weights"]
        return
    for row, was in zip(now["rows"], kept["rows"], strict=True):
        assert row.keys() == was.keys()
        for key, value in was.items():
            same = value == row[key] if value is None else math.isclose(row[key], value, rel_tol=1e-3, abs_tol=1e-3)
            assert same, (key, value, row[key])


@pytest.mark.parametrize(
    "name", [name if name in SHOWN_FAST else pytest.param(name, marks=pytest.mark.slow) for name in goldens.RUNS]
)
def test_a_small_run_is_what_it_was(name: str, tmp_path: Path, rules_url: str) -> None:
    """Its rewards come from a service that runs already, which gives the scores of the one that the recipe starts."""
    running = ["rewards.launch=none", f"rewards.services.rules={{urls: ['{rules_url}']}}"]
    run_trainer(goldens.small_config(name, tmp_path), *running, ranks=2 if name in ("two_ranks", "zero") else 1)
    _compare(goldens.outcome(tmp_path / name), goldens.read(name))


@pytest.mark.parametrize(
    "name",
    [
        name if name == "quickstart_short" else pytest.param(name, marks=pytest.mark.slow)
        for name in goldens.QUICKSTARTS
    ],
)
def test_the_quickstart_is_what_it_was(name: str, tmp_path: Path) -> None:
    """Its own model and rewards; the services' answers come from a tape that knows every image by its digest."""
    kept = goldens.read(name)
    if kept["machine"] != goldens.machine():
        pytest.skip(f"recorded on {kept['machine']}, this is {goldens.machine()}: images differ in their last bits")
    run_trainer(QUICKSTART, *goldens.replay_overrides(name, tmp_path), output=tmp_path / "output")
    _compare(goldens.outcome(tmp_path / name), kept)
