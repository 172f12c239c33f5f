"""UnifiedReward-Flex: a JSON object with categories of the judge's own choice, a winner in each and one overall."""

from __future__ import annotations

import re
from typing import Any

from services.kit.judge.answers import to_ascii
from services.unifiedreward.parsing.common import TIE, Judgement, ParseError, read_object

CATEGORIES = ("A", "B", "C")  # every comparison has these three; what the judge adds does not count
_SUM = 10.0

_LETTER = re.compile(r"\W*(?:[Cc]ategory\s+)?([A-Z])\W*(?:\s*[.:)-].*)?", re.DOTALL)
_WINNER = re.compile(r"(?:the )?image ?([12])(?: (?:wins|is better))?", re.IGNORECASE)
_EQUAL = re.compile(r"tie|draw|equal|both|both images are equally good", re.IGNORECASE)


def read_flex(text: str) -> Judgement:
    """The share is that of the overall winner; `parts` has the winners of the categories A, B and C.

    A category is known by the letter its name begins with, else by its place. One without a readable winner is left
    out. Sub-scores that do not add up to 10 are flagged `scores_do_not_sum`.
    """
    tree = read_object(text)
    share = _share(tree.get("winner"))
    if share is None:
        raise ParseError(f"`winner` is {tree.get('winner')!r:.80}, which names no image")
    categories = tree.get("categories")
    if not isinstance(categories, list):
        raise ParseError(f"`categories` is {categories!r:.80}, not a list")
    parts: dict[str, float] = {}
    for place, category in enumerate(categories):
        if not isinstance(category, dict):
            raise ParseError(f"category {place + 1} is {category!r:.80}, not an object")
        letter = _letter(category.get("name"), place)
        won = _share(category.get("cat_winner"))
        if letter in CATEGORIES and won is not None:
            if letter in parts:
                raise ParseError(f"category {letter} appears twice")
            parts[letter] = won
    odd = any(_off_sum(dim) for category in categories for dim in _listed(category.get("dims")))
    return Judgement(share, parts, ("scores_do_not_sum",) if odd else ())


def _letter(name: object, place: int) -> str:
    match = _LETTER.fullmatch(to_ascii(name)) if isinstance(name, str) else None
    return match.group(1).upper() if match else chr(ord("A") + place)


def _share(winner: object) -> float | None:
    words = " ".join(to_ascii(winner).split()).strip(" .\"'*[]") if isinstance(winner, str) else ""
    if _EQUAL.fullmatch(words):
        return TIE
    match = _WINNER.fullmatch(words)
    return float(match.group(1) == "1") if match else None


def _listed(dims: object) -> list[Any]:
    return dims if isinstance(dims, list) else []


def _off_sum(dim: Any) -> bool:
    try:
        return float(dim["score_1"]) + float(dim["score_2"]) != _SUM
    except (TypeError, KeyError, ValueError, OverflowError):
        return True
