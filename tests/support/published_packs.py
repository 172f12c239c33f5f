"""How published packs hold rows of UniReason's six formats: a reading of their description, split by split, that asks the trainer for
nothing but ids of words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

THINK, REFINE = "think", "look"
SIDE = 4 * 4  # tokens of an image of 32 x 32 pixels, seen or as latents


def text(said: str, *, learnt: bool = False, then_image: bool = False) -> tuple[Any, ...]:
    return "text", said, learnt, then_image


def given() -> list[tuple[Any, ...]]:
    """An image that is there: its latents, then as it is seen."""
    return [("clean",), ("seen",)]


DRAWN = ("drawn",)
# What a row of each kind is, item by item, for the rows of tests/support/packed_rows.py.
READING: Mapping[str, Callable[[Mapping[str, Any]], list[tuple[Any, ...]]]] = {
    "t2i": lambda row: [text(row["txt"]), DRAWN],
    "edit": lambda row: [text(row["instruction"]), *given(), DRAWN],
    "t2i_reason": lambda row: [
        *(text(THINK), text(row["txt"]), text(f"<think>{row['Reasoning'].strip()}</think>", learnt=True)),
        DRAWN,
    ],
    "edit_reason": lambda row: [
        *(text(THINK), text(row["instruction"]), *given()),
        *(text(f"<think>{row['reasoning']}</think>", learnt=True), DRAWN),
    ],
    "t2i_refine": lambda row: [
        *(text(REFINE), text(row["prompt"]), text("a square in the middle"), *given()),
        *(text("<sugg>it is red, make it green</sugg>", learnt=True, then_image=True), DRAWN, *given()),
        text("<sugg></sugg>", learnt=True, then_image=True),
    ],
    "edit_refine": lambda row: [
        *(text(REFINE), text(row["prompt"]), *given(), text("<think>blue it is</think>"), *given()),
        *(text("<sugg>still green</sugg>", learnt=True, then_image=True), DRAWN, *given()),
        *(text("<sugg>more blue</sugg>", learnt=True, then_image=True), DRAWN, *given()),
        text("<sugg>done</sugg>", learnt=True, then_image=True),
    ],
}


@dataclass
class Sample:
    """A row as published packs hold it: splits one after another, each causal, full or noise.

    Attributes:
        tokens: of each its word, or what it stands for.
        positions: rotary.
        predicted: where, and which word.
        texts: how many of these each learnt text has; what ends a text and leads to an image counts for itself.
        splits: lengths and kinds.
    """

    tokens: list[Any] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    predicted: list[tuple[int, int]] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    splits: list[tuple[int, str]] = field(default_factory=list)
    position: int = 0

    def text(self, words: Any, said: str, learnt: bool, then_image: bool) -> None:
        first, ids = len(self.tokens), [words.start, *words.encode(said), words.end]
        self.tokens += ids
        self.positions += [self.position + n for n in range(len(ids))]
        if learnt:
            self.predicted += [(first + n, word) for n, word in enumerate(ids[1:])]
            self.texts.append(len(ids) - 1)
        if then_image:
            self.predicted.append((first + len(ids) - 1, words.image_start))
            self.texts.append(1)
        self.splits.append((len(ids), "causal"))
        self.position += len(ids)

    def image(self, words: Any, kind: str) -> None:
        inside = "patch" if kind == "seen" else "latent"
        self.tokens += [words.image_start, *[inside] * SIDE, words.image_end]
        self.positions += [self.position] * (SIDE + 2)
        self.splits.append((SIDE + 2, "noise" if kind == "drawn" else "full"))
        self.position += kind != "drawn"

    def mask(self) -> torch.Tensor:
        """bool (N, N)."""
        seen = torch.zeros(len(self.tokens), len(self.tokens), dtype=torch.bool)
        start = 0
        for length, kind in self.splits:
            own = slice(start, start + length)
            seen[own, :start] = True
            seen[own, own] = torch.ones(length, length).tril().bool() if kind == "causal" else True
            start += length
        start = 0
        for length, kind in self.splits:
            own = slice(start, start + length)
            if kind == "noise":
                kept = seen[own, own].clone()
                seen[:, own] = False
                seen[own, own] = kept
            start += length
        return seen


def read(words: Any, items: Sequence[tuple[Any, ...]], dropped: Sequence[str], copies: int) -> Sample:
    """All of a row, but what is left out: a text leaves nothing, an image its position."""
    sample = Sample()
    for kind, *rest in items:
        if kind == "text" and "text" not in dropped:
            sample.text(words, *rest)
        elif kind in ("clean", "seen") and kind in dropped:
            sample.position += 1
        elif kind != "text":
            for _ in range(copies if kind == "drawn" else 1):
                sample.image(words, kind)
    return sample
