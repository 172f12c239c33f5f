"""What an engine can write, from its model's own list of characters, and which texts it therefore can never read."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection
from itertools import pairwise

# The first word of a letter's Unicode name is its script, but for these.
_SCRIPTS = {"Cjk": "Han", "Kangxi": "Han", "Ideographic": "Han", "Fullwidth": "Latin", "Halfwidth": "Katakana"}
_LEAST_LETTERS = 20  # fewer are signs and look-alikes: a Greek mu is in most models, Greek in few
_SHOWN = 8


class Alphabet:
    """The characters of one model."""

    def __init__(self, characters: Collection[str]) -> None:
        forms = {form for character in characters for form in unicodedata.normalize("NFKC", character)}
        self._exact = frozenset(forms)
        self._folded = frozenset(form for character in forms for form in character.lower())

    def missing(self, text: str, *, fold_case: bool) -> list[str]:
        """Letters, marks and digits of the text (NFKC) that the model has no character for, each once.

        `fold_case`: a letter that is known in one case is known in both. Punctuation and symbols are never missing.
        """
        normal = unicodedata.normalize("NFKC", text)
        known = self._folded if fold_case else self._exact
        wanted = dict.fromkeys(normal.lower() if fold_case else normal)
        return [c for c in wanted if _is_letter(c) and c not in known and not _selects(c)]

    def missing_symbols(self, text: str) -> list[str]:
        """Symbols of the text (NFKC), such as emoji, that the model has no character for, each once."""
        wanted = dict.fromkeys(unicodedata.normalize("NFKC", text))
        return [c for c in wanted if _is_symbol(c) and c not in self._exact]

    def scripts(self) -> dict[str, int]:
        """How many letters of each script it has, the largest first; scripts of which it has but a few are left out."""
        found = Counter(script for character in self._exact if (script := script_of(character)))
        return {script: count for script, count in found.most_common() if count >= _LEAST_LETTERS}

    def ranges(self) -> str:
        """The code points of all characters as hexadecimal ranges, such as "21-7e a1 4e00-9fa5"."""
        points = sorted(ord(character) for character in self._exact)
        if not points:
            return ""
        gaps = [(a, b) for a, b in pairwise(points) if b > a + 1]
        starts, ends = [points[0], *(b for _, b in gaps)], [*(a for a, _ in gaps), points[-1]]
        return " ".join(f"{a:x}" if a == b else f"{a:x}-{b:x}" for a, b in zip(starts, ends, strict=True))


def refusal(text: str, missing: list[str], scripts: Collection[str]) -> str:
    """Why a text cannot be scored, with what to do about it."""
    by_script: dict[str, list[str]] = {}
    for character in missing:
        by_script.setdefault(script_of(character) or "other", []).append(character)
    listed = ", ".join(f"{' '.join(chars[:_SHOWN])} ({script})" for script, chars in by_script.items())
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return (
        f"the OCR model cannot write {listed}, so {shown!r} could never be read right; it writes {', '.join(scripts)}. "
        "Serve a model of that script: --rec-model, or another --engine with its models or --language"
    )


def script_of(character: str) -> str | None:
    """The script of a letter, such as Latin or Han; None for what is no letter."""
    if not character.isalpha():
        return None
    word = unicodedata.name(character, "").partition(" ")[0].capitalize()
    return _SCRIPTS.get(word, word) or None


def _is_symbol(character: str) -> bool:
    """Currency, mathematics, images, and marks that enclose what is before them, as a keycap does."""
    category = unicodedata.category(character)
    return category[0] == "S" or category == "Me"


def _is_letter(character: str) -> bool:
    """A letter, mark or digit."""
    return unicodedata.category(character)[0] in "LMN" and not _is_symbol(character)


def _selects(character: str) -> bool:
    """Variation selectors choose between images of the character before them."""
    return "\ufe00" <= character <= "\ufe0f"
