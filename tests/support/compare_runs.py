"""Whether two runs took the same steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.trainer_runs import read_metrics, saved_weights

# A softmax stays as it is where all keys are moved alike, so their bias has a gradient of rounding alone: AdamW makes whole steps of it.
_OF_ROUNDING = "k_proj.bias"


def final_weights(run_dir: Path, step: int = 4, *, without: str | None = None) -> torch.Tensor:
    """All trained weights of a checkpoint, but those whose names end in `without`, in one vector."""
    weights = saved_weights(run_dir / "checkpoints" / f"step_{step:06d}")
    names = [name for name in sorted(weights) if without is None or not name.endswith(without)]
    return torch.cat([weights[name].flatten() for name in names])


def assert_same_run(run_dir: Path, other_dir: Path, step: int = 4) -> None:
    """Equal up to the order of float32 sums, and not for want of anything to learn. AdamW's first steps move every weight by about lr = 1e-3 whatever its
    gradient's size, so a weight may differ by a share of that where the gradient is all rounding.

    Rows `stats/...` are left out: they describe a few pictures of each rank, so other ones for another number of ranks.
    """
    assert any(row.get("grad_norm") for row in read_metrics(run_dir)), "no step had a gradient: nothing is compared"
    weights, others = (final_weights(each, step, without=_OF_ROUNDING) for each in (run_dir, other_dir))
    torch.testing.assert_close(weights, others, rtol=0, atol=1e-4)
    for row, other in zip(read_metrics(run_dir), read_metrics(other_dir), strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            if key.endswith("ratio/replay_error"):  # is rounding, and nothing else
                assert max(value, other[key]) < 1e-4, key
            elif not key.startswith("stats/"):
                assert value == pytest.approx(other[key], rel=1e-3, abs=1e-5), key
