"""Rows of pairs as PairUni publishes them, with their images, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.text_rows import png, write_jsonl
from trainer.config.texts import RowsConfig

QUESTION = "What is on the left?\nA. a red disc\nB. a blue bar\nAnswer with the letter of the right option."


def side(path: str | None, prompt: str = "a red disc", **changes: Any) -> dict[str, Any]:
    """One side; a field that is changed to None is left out."""
    whole = {"image_path": path, "prompt": prompt, "question": QUESTION, "answer": "A", "tag": "made", **changes}
    return {name: value for name, value in whole.items() if value is not None}


def pair(similarity: Any = 0.88, drawn: str = "b.png", asked: str = "a.png", **changes: Any) -> dict[str, Any]:
    """A retrieved pair; a field that is changed to None is left out."""
    row = {
        "similarity": similarity,
        "generate_ann": side(drawn, "a green ring", tag="geneval_train"),
        "understand_ann": side(asked),
        **changes,
    }
    return {name: value for name, value in row.items() if value is not None}


def write_pairs(folder: Path, *rows: Mapping[str, Any], images: int = 4) -> Path:
    """A file of rows, with images a.png, b.png, ... of one colour each beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(images):
        (folder / f"{chr(ord('a') + place)}.png").write_bytes(png((40 * place, 0, 0)))
    return write_jsonl(folder / "pairs.jsonl", rows)


def rows_section(**fields: Any) -> RowsConfig:
    return RowsConfig.model_validate(fields)
