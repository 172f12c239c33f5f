"""Rows with images for tests of text data, written as each format has them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from trainer.config.texts import TextFileConfig


def png(color: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    """The bytes of an image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]], *, group: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def text_file(path: Path, **fields: Any) -> TextFileConfig:
    """A section that reads `path`, with a cache of images beside it."""
    cache = path.parent / "image_cache"
    return TextFileConfig.model_validate({"path": str(path), "image_cache": str(cache), **fields})
