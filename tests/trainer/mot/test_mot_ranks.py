"""Two ranks whose packs hold unlike things take the steps of one process with both packs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.mot_ranks import STEPS, steps_of
from tests.support.rank_cases import cases_on_ranks


def check(folder: Path, *engines: str) -> None:
    found = cases_on_ranks("tests.support.mot_ranks", folder, *engines)[0]
    expected = steps_of(folder)
    steps = list(zip(expected["held"][::2], expected["held"][1::2], strict=True))
    assert len(steps) == STEPS
    for kind in (0, 1):  # learnt words, latents: of each a step has some in one pack and none in the other
        assert any(sorted(pack[kind] > 0 for pack in step) == [False, True] for step in steps), expected["held"]
    for engine in engines:
        for row, other in zip(expected["rows"], found[engine]["rows"], strict=True):
            losses = [name for name in row if name.startswith("loss")]
            assert losses
            for name in ("grad_norm", *losses):
                assert other[name] == pytest.approx(row[name], rel=1e-4, abs=1e-6), (engine, name)
        assert found[engine]["weights"].keys() == expected["weights"].keys()
        for name, weight in expected["weights"].items():
            if name.startswith("vit_model.") and name.endswith("k_proj.bias"):
                continue  # it moves all logits of a query alike, so that its gradient is 0 and what AdamW makes of it rounding
            torch.testing.assert_close(
                torch.tensor(found[engine]["weights"][name]),
                torch.tensor(weight),
                rtol=1e-3,
                atol=1e-5,
                msg=f"{engine} {name}",
            )


@pytest.mark.slow
def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    check(tmp_path, "none")


@pytest.mark.slow
def test_sharded_weights_are_gathered_in_one_order_whatever_a_pack_holds(tmp_path: Path) -> None:
    check(tmp_path, "zero2", "zero3")
