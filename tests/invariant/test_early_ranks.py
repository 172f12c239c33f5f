"""A gradient that is added up before the last score is that of a step that waits, on one rank and two, whatever holds the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.early_ranks import APART, CASES, one_step
from tests.support.rank_cases import cases_on_ranks
from tests.support.tiny_updates import WORLD

pytestmark = pytest.mark.slow  # processes of their own, with DeepSpeed


def test_an_early_step_is_one_that_waits_on_every_engine(tmp_path: Path) -> None:
    """Advantages that are clamped, a KL, two updates, a score or a whole group of one rank that became another after it was used."""
    expected = {case: one_step(case, WORLD, early=False) for case in CASES}
    found = {"one rank": {case: one_step(case, WORLD, early=True) for case in CASES}}
    found |= cases_on_ranks("tests.support.early_ranks", tmp_path, "none", "zero1", "zero2", "zero3")[0]
    for engine, rows in found.items():
        assert rows.keys() == CASES.keys() - (APART if engine.startswith("zero") else set())
        for case, row in rows.items():
            assert row.pop("added") == (3 if engine == "one rank" else 1), "all but the last group of a rank"
            assert row.pop("clamped") or engine != "one rank"
            assert row.keys() == expected[case].keys()
            precise = 1e-6 if case != "two updates" else 1e-4  # its norm is that of the second, from weights after Adam
            assert row["grad_norm"] == pytest.approx(expected[case]["grad_norm"], rel=precise), (engine, case)
            for key, value in expected[case].items():
                assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-6), (engine, case, key)
    assert all(expected[case]["loss/kl"] > 0 for case in CASES if "KL" in case)
