"""What tells whether the prompts of a run are those that it was started with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trainer.types import Prompt

_SORTED = json.JSONEncoder(sort_keys=True)  # `json.dumps` would make one for each prompt


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of ids, texts, negative prompts, targets, metadata, names of source images, and of pairs both sides and how near
    they are; the order of the prompts does not matter."""
    return fingerprint_of_rows(row_of(p) for p in sorted(prompts, key=lambda p: p.id))


def fingerprint_of_rows(rows: Iterable[bytes]) -> str:
    """The fingerprint of prompts by their rows (`row_of`), which come in the order of their ids."""
    whole = hashlib.sha256(b"[")  # the bytes of one JSON list, which is never held whole
    between = b""
    for row in rows:
        whole.update(between + row)
        between = b", "
    whole.update(b"]")
    return whole.hexdigest()


def row_of(prompt: Prompt) -> bytes:
    """What a fingerprint is taken of, as JSON in one line."""
    return _SORTED.encode(said(prompt)).encode()


def said(p: Prompt) -> list[Any]:
    """Id, text, targets, metadata, and if there are such the names of images, the negative prompt, the sides of a pair."""
    negative = [] if p.negative_prompt is None else [{"negative_prompt": p.negative_prompt}]
    sides = [{"similarity": p.similarity, "sides": [said(side) for side in p.sides]}] if p.sides else []
    images = [Path(image).name for image in p.source_images] if p.source_images else []
    return [p.id, p.text, p.targets, p.metadata, *images, *negative, *sides]
