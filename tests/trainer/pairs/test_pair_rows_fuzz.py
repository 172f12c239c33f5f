"""Rows of pairs with anything in them: each is read, or refused by a DataError that names its line."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

from tests.support.pair_rows import pair, rows_section, write_pairs
from trainer.data.pairs.file import read_pairs
from trainer.data.prompts import DataError

ANYTHING: list[Any] = [
    *(None, True, 0, -1, 1e308, 10**400, float("nan"), float("-inf"), "", " ", "A", "\x00", "\ud800", "<image>", "../a.png"),
    *([], {}, [None], [["A"]], {"bytes": None}, {"bytes": "AAAA", "path": "a.png"}, {"a": {"b": [float("nan")]}}),
    *("A. x\nB. y\nA. z", "A B C", "a" * 70_000, "A.\nB.", "(A)(B)", "B. a blue bar\n" * 3),
]  # fmt: skip


def changed(rng: random.Random) -> dict[str, Any]:
    """A good row with one to three fields, of any level, replaced, taken out or added."""
    row = copy.deepcopy(pair())
    for _ in range(rng.randint(1, 3)):
        target = rng.choice([row, *(row[name] for name in ("generate_ann", "understand_ann") if isinstance(row.get(name), dict))])  # fmt: skip
        name = rng.choice([*target, "targets", "metadata", "image", "images", "other"])
        if rng.random() < 0.2:
            target.pop(name, None)
        else:
            target[name] = rng.choice(ANYTHING)
    return row


def test_every_row_is_read_or_refused_by_name(tmp_path: Path) -> None:
    path, refused = write_pairs(tmp_path), 0
    for seed in range(300):
        row = changed(random.Random(seed))
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        try:
            (found,) = read_pairs(rows_section(), path=str(path), field="f", dataset="d").train.prompts
            assert 0 <= found.similarity <= 1 and found.side("understand").targets
        except DataError as error:
            refused += 1
            assert f"{path}:1" in str(error), (row, error)
    assert 50 < refused < 300, "some are read, some are not"
