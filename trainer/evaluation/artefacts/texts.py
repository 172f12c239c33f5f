"""Held-out texts: JSON files, their numbers, and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import RewardsConfig
from trainer.records.text_metrics import HOLDS
from trainer.types import Sample
from wire.images import read_picture

SUFFIX = ".text.json"
GIVEN_FORMAT = "accuracy_given_format"
SOURCE_SIDE = 256  # of an image of the prompt, as it is shown


@dataclass(frozen=True)
class Told:
    """A text as it was saved: `tokens` are the ids that were drawn, `images` how many images belong to the sample."""

    text: str
    tokens: tuple[int, ...]
    finished: bool
    images: int


def path(folder: Path, stem: str) -> Path:
    """The file of a sample's text."""
    return folder / f"{stem}{SUFFIX}"


def save(folder: Path, stem: str, sample: Sample) -> None:
    """Write the text of a sample with all that a reward may be asked with."""
    tree = {
        "text": sample.text,
        "tokens": list(sample.tokens),
        "finished": sample.finished,
        "images": len(sample.images),
    }
    path(folder, stem).write_text(json.dumps(tree, ensure_ascii=False) + "\n", encoding="utf-8")


def load(folder: Path, stem: str) -> Told:
    """What `save` wrote. Raises OSError: missing or damaged."""
    try:
        tree = json.loads(path(folder, stem).read_text(encoding="utf-8"))
        return Told(str(tree["text"]), tuple(map(int, tree["tokens"])), bool(tree["finished"]), int(tree["images"]))
    except (ValueError, TypeError, LookupError) as error:
        raise OSError(f"{path(folder, stem)} is damaged: {type(error).__name__}: {error}") from error


def length(sample: Sample) -> int:
    """Tokens that were drawn, the end included; words where the policy keeps no tokens."""
    return len(sample.tokens) or len((sample.text or "").split())


def statistics(sample: Sample) -> dict[str, float]:
    """`length` in tokens, and `truncated`: 1 for a text that was cut off at the most tokens it may have. None for a
    sample without a text."""
    if sample.text is None:
        return {}
    return {"length": float(length(sample)), "truncated": float(not sample.finished)}


def given_format(scores: Mapping[str, float | None], rewards: RewardsConfig) -> dict[str, float]:
    """The accuracy of a text whose form holds, under GIVEN_FORMAT; none for others: the mean over those that have it is the
    accuracy given format."""
    right, form = (scores.get(rewards.role(role) or "") for role in ("accuracy", "format"))
    return {} if right is None or form is None or form < HOLDS else {GIVEN_FORMAT: right}


def distinct(texts: Sequence[str]) -> dict[str, float]:
    """`distinct`: which share of a prompt's texts differ from each other, 1 / n to 1. None for fewer than two."""
    return {"distinct": len(set(texts)) / len(texts)} if len(texts) > 1 else {}


def shown(sample: Sample) -> dict[str, Any]:
    """The text, its length, whether it came to its end; and the images of its prompt, small, also where there is no text."""
    sources = [_small(each) for each in sample.prompt.source_images]
    if sample.text is None:
        return {"text": None, **({"sources": sources} if sources else {})}
    return {
        "text": sample.text,
        "length": length(sample),
        "finished": sample.finished,
        "sources": sources,
    }


def _small(name: str) -> np.ndarray | None:
    """An image of a prompt at most SOURCE_SIDE wide and high; None where it cannot be read. The policy has read it, so that
    it was there."""
    try:
        image = read_picture(Path(name)).convert("RGB")
        image.thumbnail((SOURCE_SIDE, SOURCE_SIDE))
        return np.asarray(image)
    except (OSError, ValueError):
        return None
