"""Packs of unequal length on two ranks give the loss, the gradient and the weights of one process that has them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.pack_ranks import steps_of
from tests.support.rank_cases import cases_on_ranks


def launch(out: Path, *cases: str) -> dict[str, Any]:
    return cases_on_ranks("tests.support.pack_ranks", out, *cases)[0]


def check(case: str, actual: dict[str, Any]) -> None:
    expected = steps_of(case.partition("-")[0])
    assert expected["rows"][0]["grad_norm"] > 1e-3
    for row, other in zip(expected["rows"], actual["rows"], strict=True):
        assert other.keys() == row.keys()
        for name, value in row.items():
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (case, name)
    for what in ("gradient", "weights"):
        if actual[what] is not None:
            torch.testing.assert_close(
                torch.tensor(actual[what]), torch.tensor(expected[what]), rtol=1e-4, atol=1e-6, msg=f"{case} {what}"
            )


def test_unequal_packs_on_two_ranks_are_one_process_and_none_waits_for_ever(tmp_path: Path) -> None:
    found = launch(tmp_path, "uneven-none", "lonely-none", "token-none", "sample-none")
    for case, actual in found.items():
        check(case, actual)
    totals = [[ranks[step] for ranks in found["lonely-none"]["made"]] for step in range(6)]
    lonely = [kind for step in totals for kind in (0, 1) if sorted(rank[kind] > 0 for rank in step) == [False, True]]
    assert {0, 1} <= set(lonely)  # of both kinds there was a step with some on one rank and none on the other


@pytest.mark.slow
def test_zero_takes_the_same_steps(tmp_path: Path) -> None:
    found = launch(tmp_path, "uneven-zero0", "uneven-zero2", "lonely-zero2", "lonely-zero3")
    for case, actual in found.items():
        check(case, actual)
