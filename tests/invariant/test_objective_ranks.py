"""Every objective takes the same step on one rank and on two (gloo), of which the second has nothing to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.objective_ranks import cases, one_step
from tests.support.rank_cases import cases_on_ranks
from tests.support.tiny_updates import WORLD

pytestmark = pytest.mark.slow  # whole runs in processes of their own


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng, entries = np.random.default_rng(0), []
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (24, 48, 3), np.uint8)).save(folder / f"{number}.png")
        entries.append({"image_path": f"{number}.png", "txt": f'the word "{"ACDEF"[number]}7" in red'})
    (folder / "data.json").write_text(json.dumps(entries))
    return folder / "data.json"


@pytest.fixture(scope="module")
def two_ranks(pictures: Path) -> dict[str, Any]:
    return cases_on_ranks("tests.support.objective_ranks", pictures.parent, *cases(pictures))[0]


@pytest.mark.parametrize("name", list(cases(Path("data.json"))))
def test_one_rank_is_two_ranks(two_ranks: dict[str, Any], pictures: Path, name: str) -> None:
    expected, row = one_step(name, cases(pictures)[name], WORLD)
    actual, other = torch.tensor(two_ranks[name]["gradient"]), two_ranks[name]["row"]
    scale = expected.abs().max().item()
    assert scale > 0
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * scale)
    assert other.keys() == row.keys()
    for key, value in row.items():
        assert other[key] == pytest.approx(value, rel=1e-3, abs=1e-6), key
