"""What tells whether the prompts of a run are those that it was started with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.types import Prompt


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of ids, texts, negative prompts, targets, metadata, names of source images, and of pairs both sides and how near
    they are; the order of the prompts does not matter."""
    rows = [_said(p) for p in sorted(prompts, key=lambda p: p.id)]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _said(p: Prompt) -> list[Any]:
    negative = [] if p.negative_prompt is None else [{"negative_prompt": p.negative_prompt}]
    sides = [{"similarity": p.similarity, "sides": [_said(side) for side in p.sides]}] if p.sides else []
    return [p.id, p.text, p.targets, p.metadata, *(Path(i).name for i in p.source_images), *negative, *sides]
