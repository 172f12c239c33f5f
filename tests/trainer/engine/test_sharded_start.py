"""ZeRO-3 takes a network over from the host, parameter by parameter: no rank ever holds it whole, and every number is that of a whole start."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel

from tests.support.forked import run_ranks
from tests.support.tiny_pipelines import make_sd3

CASES = [("zero3", "zero3+at_once"), ("zero3_offload", "zero3+at_once"), ("zero3+lora", "none+lora")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = make_sd3(tmp_path_factory.mktemp("sd3"), t5=False)
    transformer = SD3Transformer2DModel.from_pretrained(folder / "transformer").to(torch.bfloat16)
    transformer.save_pretrained(folder / "transformer")
    output = tmp_path_factory.mktemp("ranks") / "found.json"
    run_ranks("tests.trainer.engine.sharded_start_ranks", str(output), str(folder), ranks=2, output=output)
    read: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return read


@pytest.mark.slow
@pytest.mark.parametrize(("shared", "whole"), CASES)
def test_numbers_are_those_of_a_whole_start(found: dict[str, Any], shared: str, whole: str) -> None:
    ours, theirs = found[shared], found[whole]
    for key in ("before", "sampled", "images", "logps", "kls"):
        assert ours[key] == theirs[key], key
    assert any(np.any(kl) for kl in theirs["kls"]) == ("+lora" in whole), "full training starts at its reference"
    # Beside DeepSpeed bfloat16 gradients are added up over the ranks in another order than without it.
    assert ours["norm"] == pytest.approx(theirs["norm"], rel=1e-3 if whole == "none+lora" else 1e-6)


@pytest.mark.slow
def test_it_begins_where_one_process_does(found: dict[str, Any]) -> None:
    """DeepSpeed's linear layers add the bias after a rounding of their own, so that samples agree in bfloat16's digits alone."""
    for key in ("before", "kls"):
        assert found["zero3"][key] == found["none"][key], key
    np.testing.assert_allclose(found["zero3"]["sampled"], found["none"]["sampled"], rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("shared", "whole"), CASES)
def test_each_rank_holds_its_part(found: dict[str, Any], shared: str, whole: str) -> None:
    ours, theirs = found[shared]["held"], found[whole]["held"]
    for kind in ("trained", "copy"):
        if theirs[kind] is None:  # adapters are left out in its place
            assert ours[kind] is None
            continue
        assert ours[kind]["elements"] == theirs[kind]["elements"]
        assert ours[kind]["whole"] == 0 and ours[kind]["held"] < 0.51 * ours[kind]["elements"]
        assert ours[kind]["types"] == theirs[kind]["types"]
    assert whole == "none+lora" or theirs["copy"]["whole"] == theirs["copy"]["elements"]
    assert found[shared]["waited"][0] == "torch.bfloat16", "it waited in the type of its files"


@pytest.mark.slow
def test_the_reference_is_held_in_bfloat16_where_autocast_casts_it_anyway(found: dict[str, Any]) -> None:
    types = found["zero3"]["held"]["copy"]["types"]
    assert types["transformer_blocks.0.attn.to_q.weight"] == "torch.bfloat16"
    assert types["transformer_blocks.0.attn.norm_q.weight"] == "torch.float32"
    assert set(found["zero3"]["held"]["trained"]["types"].values()) == {"torch.float32"}
