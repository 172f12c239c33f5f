"""The policies `mot` and `neo` take the same steps on packs under every ZeRO stage as on one process, and each rank saves
its share.

Two starts of one and of two ranks run the cases (pack_engine_ranks.py); the tests look at what came out. All are
`slow`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.forked import run_ranks
from tests.trainer.engine.pack_engine_ranks import LR, MADE, STAGES, STEPS

Found = dict[str, dict[str, Any]]
FIRST = ("mot+frozen:zero3",)
ALL = tuple(f"{kind}:{stage}" for kind in MADE for stage in STAGES if f"{kind}:{stage}" not in FIRST)


def run(output: Path, ranks: int, cases: tuple[str, ...]) -> Found:
    run_ranks("tests.trainer.engine.pack_engine_ranks", str(output), *cases, ranks=ranks, output=output)
    found: Found = json.loads(output.read_text(encoding="utf-8"))
    return found


def both(folder: Path, cases: tuple[str, ...]) -> tuple[Found, Found]:
    """What one process without DeepSpeed made of each kind, and what two ranks made of each case."""
    alone = tuple(f"{kind}:none" for kind in dict.fromkeys(case.split(":")[0] for case in cases))
    return run(folder / "alone.json", 1, alone), run(folder / "two.json", 2, cases)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    return both(tmp_path_factory.mktemp("first"), FIRST)


@pytest.fixture(scope="module")
def all_cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    return both(tmp_path_factory.mktemp("all"), ALL)


@pytest.fixture
def pair(request: pytest.FixtureRequest, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """One process, and two ranks."""
    alone, two = request.getfixturevalue("first" if case in FIRST else "all_cases")
    return alone[f"{case.split(':', maxsplit=1)[0]}:none"], two[case]


CASES = [*FIRST, *ALL]
pytestmark = pytest.mark.slow  # two unequal packs on two ranks: invariant/test_pack_ranks.py


@pytest.mark.parametrize("case", CASES)
def test_packs_of_unequal_length_are_trained_on_as_by_one_process(
    pair: tuple[dict[str, Any], dict[str, Any]], case: str
) -> None:
    """Losses and gradient norms of three steps, weights, moments and averages. One rank has no image in one of the steps."""
    alone, two = pair
    for mine, theirs in zip(alone["rows"], two["rows"], strict=True):
        for key in ("loss/ce", "loss/mse", "grad_norm", "packed/text_tokens", "packed/latent_tokens", "packed/rows"):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4, abs=1e-7), key
    assert alone["state"].keys() == two["state"].keys()
    for name, kinds in alone["state"].items():
        assert kinds.keys() == two["state"][name].keys(), name
        for kind, value in kinds.items():
            # AdamW moves an element whose gradient is next to nothing by up to the rate, in whichever direction rounding says.
            free = 2 * STEPS * LR if kind in ("weight", "average") else 1e-6
            other = np.asarray(two["state"][name][kind])
            np.testing.assert_allclose(other, value, rtol=1e-3, atol=free, err_msg=f"{name} {kind}")
            close = np.isclose(other, value, rtol=1e-4, atol=1e-2 * LR)
            assert close.mean() > 0.99, f"{name} {kind}"
    if "frozen" in case:
        assert not [name for name in two["state"] if name.startswith("connector.")]


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_goes_on_bit_for_bit(pair: tuple[dict[str, Any], dict[str, Any]], case: str) -> None:
    _, two = pair
    assert two["moved"] and two["goes_on"]


@pytest.mark.parametrize("case", CASES)
def test_each_rank_saves_its_share(pair: tuple[dict[str, Any], dict[str, Any]], case: str) -> None:
    """Every tensor is in one share, and no share is much more than half."""
    _, two = pair
    whole = sum(4 * len(value) for kinds in two["state"].values() for value in kinds.values())
    largest = max(4 * len(kinds["weight"]) for kinds in two["state"].values())
    assert sum(own for own, _ in two["shares"]) == whole
    assert all(own <= whole / 2 + 4 * largest and count for own, count in two["shares"])
