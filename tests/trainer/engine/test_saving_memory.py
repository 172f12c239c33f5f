"""Saving takes a rank's share of the state and little beside: no rank ever has the whole model together, on its way or at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import run_ranks

SIDE, COUNT = 1024, 24  # 4 MiB a matrix
BESIDE = 3  # times the largest tensor, which is twice as large as the others
FIXED = 12 << 20  # threads, buffers of the network and of the file
# zero2+average took 14 times the largest tensor before tensors had pages of their own
CASES = [f"{stage}{average}" for stage in ("none", "zero1", "zero2", "zero3") for average in ("", "+average")]


def saved(folder: Path, case: str, side: int = SIDE, count: int = COUNT) -> dict[str, Any]:
    output = folder / "found.json"
    run_ranks("tests.trainer.engine.saving_ranks", str(output), str(side), str(count), case, ranks=2, output=output)
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_saving_takes_the_share_and_a_few_tensors(tmp_path: Path, case: str) -> None:
    """Peaks of resident memory of both ranks, of a first and a second checkpoint, while the share is copied and until it is on disk."""
    found = saved(tmp_path, case)
    whole = sum(found["share"])
    assert whole == pytest.approx(found["weights"] * (4 if "average" in case else 3), rel=1e-4)
    allowed = [share + BESIDE * found["largest"] + FIXED for share in found["share"]]
    assert max(allowed) < 0.75 * whole, "a bound that a gathered model would keep says nothing"
    for peaks in (*found["copied"], *found["written"]):
        assert all(peak < most for peak, most in zip(peaks, allowed, strict=True)), found
