"""A gradient that is added up before the last score is that of a step that waits, on one rank and two, whatever holds the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.early_ranks import CASES, one_step
from tests.support.forked import run_ranks
from tests.support.tiny_updates import WORLD

pytestmark = pytest.mark.slow  # processes of their own, with DeepSpeed


def test_an_early_step_is_one_that_waits_on_every_engine(tmp_path: Path) -> None:
    expected = {case: one_step(case, WORLD, early=False) for case in CASES}
    found = {"one rank": {case: one_step(case, WORLD, early=True) for case in CASES}}
    run_ranks("tests.support.early_ranks", str(tmp_path), "local", "zero2", "zero3", ranks=2, output=tmp_path / "ranks")
    found |= json.loads((tmp_path / "found0.json").read_text())
    for engine, rows in found.items():
        for case, row in rows.items():
            assert row.pop("added") == (3 if engine == "one rank" else 1), "all but the last group of a rank"
            assert row.keys() == expected[case].keys()
            assert row["grad_norm"] == pytest.approx(expected[case]["grad_norm"], rel=1e-6), (engine, case)
            for key, value in expected[case].items():
                assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-6), (engine, case, key)
    assert expected["grpo with a KL"]["loss/kl"] > 0
