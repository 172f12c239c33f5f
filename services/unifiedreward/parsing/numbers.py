"""Answers that are numbers: UnifiedReward 1.0 and 2.0 scores, and the pointwise scores of UnifiedReward-Edit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import TypeVar

from services.unifiedreward.parsing.common import (
    TIE,
    Judgement,
    ParseError,
    plain,
    read_object,
    spoken,
    to_number,
)

T = TypeVar("T")

ASPECTS = ("alignment", "coherence", "style")
_ROUNDING = 1e-9  # 0.95, 0.35 and 0.2 have a mean just below one half
_SUM_TOLERANCE = 0.05  # relative scores are written with few digits
_MAX_POINTS = 25.0

_VALUE = r"((?:[^\s,;]|,(?=\d))+)"  # a decimal comma belongs to it, and then it is no number
_BLOCK = r"{aspect} score ?:?\s*image ?1 ?:\s*" + _VALUE + r"[,;]?\s*image ?2 ?:\s*" + _VALUE


def read_aspects(text: str) -> Mapping[str, float]:
    """`Alignment Score (1-5): X`, and the same for coherence and style, each 1 to 5. Other lines do not matter."""
    return {aspect: _scored(text, f"{aspect} score") for aspect in ASPECTS}


def read_final_score(text: str) -> Mapping[str, float]:
    """`Final Score: X`, 1 to 5, after the lines about the caption's elements."""
    return {"final": _scored(text, "final score")}


def read_pair_scores(text: str) -> Judgement:
    """For each aspect `Image 1: X` and `Image 2: Y`, each 0 to 1, together 1. The share is the mean over the aspects."""
    words = plain(spoken(text))
    parts: dict[str, float] = {}
    for aspect in ASPECTS:
        found = re.findall(_BLOCK.format(aspect=aspect), words, re.IGNORECASE)
        first, second = _once(found, f"{aspect} score of both images")
        p1, p2 = (to_number(value, f"the {aspect} score", 0, 1) for value in (first, second))
        if abs(p1 + p2 - 1) > _SUM_TOLERANCE:
            raise ParseError(f"the {aspect} scores {p1:g} and {p2:g} have the sum {p1 + p2:g}, not 1")
        parts[aspect] = p1 / (p1 + p2)
    share = sum(parts.values()) / len(parts)
    return Judgement(TIE if math.isclose(share, TIE, abs_tol=_ROUNDING) else share, parts)


def _read_points(text: str, names: tuple[str, str]) -> Mapping[str, float]:
    points = read_object(text).get("score")
    if not isinstance(points, list) or len(points) != 2:
        raise ParseError(f"`score` is {points!r:.80}, not a list of two numbers")
    for name, value in zip(names, points, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ParseError(f"the {name} score is {value!r:.80}, not a number")
    return {
        name: to_number(str(value), f"the {name} score", 0, _MAX_POINTS)
        for name, value in zip(names, points, strict=True)
    }


# `{"reasoning": …, "score": [a, b]}`, each 0 to 25, higher is better.
read_edit_success = partial(_read_points, names=("success", "minimality"))
read_edit_quality = partial(_read_points, names=("naturalness", "cleanness"))


def _scored(text: str, label: str) -> float:
    words = plain(spoken(text))
    found = re.findall(rf"(?<!\w){label} ?(?:\(1 ?[-–] ?5\))? ?:\s*{_VALUE}", words, re.IGNORECASE)
    value = _once(found, label).removesuffix("/5").rstrip(".")
    return to_number(value, f"the {label}", 1, 5)


def _once(found: list[T], what: str) -> T:
    if not found:
        raise ParseError(f"the answer has no {what}")
    if any(each != found[0] for each in found):
        raise ParseError(f"the answer has two different values of the {what}")
    return found[0]
