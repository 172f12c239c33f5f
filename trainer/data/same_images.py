"""Prompts about the same images: a text and the content of its images, whatever their files are called."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from trainer.types import Prompt

_MARK = "<image>"


class SameImages:
    """Prompts with images, among which others are looked for.

    Only of prompts whose texts are equal are files looked at, and only of files of equal sizes is the content compared, so
    that a large set is not read twice.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._by_text: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            if prompt.source_images:
                self._by_text.setdefault(normalised(prompt.text), []).append(prompt)
        self._by_sizes: dict[str, dict[tuple[int | str, ...], list[Prompt]]] = {}
        self._by_content: dict[tuple[str, tuple[int | str, ...]], dict[tuple[str, ...], Prompt]] = {}

    def find(self, prompt: Prompt) -> Prompt | None:
        """The first of the prompts with this one's text and images; None where there is none."""
        text = normalised(prompt.text)
        if not prompt.source_images or text not in self._by_text:
            return None
        if text not in self._by_sizes:
            sizes = self._by_sizes.setdefault(text, {})
            for other in self._by_text[text]:
                sizes.setdefault(_sizes(other), []).append(other)
        key = text, _sizes(prompt)
        if key not in self._by_content:
            content = self._by_content.setdefault(key, {})
            for other in self._by_sizes[text].get(key[1], ()):
                content.setdefault(_digests(other), other)
        content = self._by_content[key]
        return content.get(_digests(prompt)) if content else None


def same_image(one: str, other: str) -> bool:
    """Whether two files hold the same bytes, whatever they are called."""
    if Path(one).resolve() == Path(other).resolve():
        return True
    return _size(one) == _size(other) and _digest(one) == _digest(other)


def normalised(text: str) -> str:
    """A text up to case, width and spaces, without the marks of its images."""
    text = text.replace(_MARK, " ")
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


def normalised_targets(targets: Iterable[str]) -> str:
    """Targets in any order, up to case, width and spaces."""
    return " | ".join(sorted(normalised(target) for target in targets))


def _sizes(prompt: Prompt) -> tuple[int | str, ...]:
    """The sizes of its files; of one that is not there, its name."""
    return tuple(_size(image) for image in prompt.source_images)


def _size(image: str) -> int | str:
    try:
        return Path(image).stat().st_size
    except OSError:
        return Path(image).name


def _digests(prompt: Prompt) -> tuple[str, ...]:
    return tuple(_digest(image) for image in prompt.source_images)


@lru_cache(maxsize=1 << 16)  # one image may belong to many questions
def _digest(image: str) -> str:
    try:
        return hashlib.sha256(Path(image).read_bytes()).hexdigest()
    except OSError:
        return Path(image).name
