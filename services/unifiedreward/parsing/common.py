"""What all readers share: the results they give, and getting at the text or the JSON that counts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from services.kit.judge.answers import after_thinking, to_ascii

TIE = 0.5

# All patterns of the readers take time in proportion to the text, whatever a judge writes.
NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"

_COMMA_BEFORE_END = re.compile(r',(?=\s*[}\]])|("(?:[^"\\]|\\.)*"?)', re.DOTALL)
_STRING = re.compile(r'("(?:[^"\\]|\\.)*"?)', re.DOTALL)


class ParseError(ValueError):
    """The answer is not in its format; the message says in what way."""


@dataclass(frozen=True)
class Judgement:
    """What one answer says of two images.

    `share` is the first image's: 1 it won, 0 it lost, 0.5 the judge said that both are equal, and in between where the
    judge gives relative scores. `parts` are such shares by aspect. `flags` name oddities that do not make it invalid.
    """

    share: float
    parts: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    @property
    def tie(self) -> bool:
        return self.share == TIE


def spoken(text: str) -> str:
    """What is said beside the reasoning, with full-width characters in their ASCII form."""
    return after_thinking(to_ascii(text))


def plain(text: str) -> str:
    """Without Markdown emphasis and with single spaces; line ends stay."""
    return "\n".join(" ".join(line.split()) for line in text.replace("*", "").replace("`", "").splitlines())


def to_number(text: str, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within the bounds. Raises ParseError."""
    try:
        value = float(text)
    except ValueError as error:
        raise ParseError(f"{name} is {text!r}, not a number") from error
    if not math.isfinite(value):
        raise ParseError(f"{name} is {text!r}, not a finite number")
    if not low <= value <= high:
        raise ParseError(f"{name} is {value:g}, outside {low:g} to {high:g}")
    return value


def read_object(text: str) -> dict[str, Any]:
    """The one JSON object of an answer, whether or not a code fence is around it and closed. Raises ParseError.

    A comma before a closing bracket is forgiven: the example in a published template has one.
    """
    # Within strings full-width characters stay: a quote among them would end its string.
    parts = _STRING.split(after_thinking(text))
    text = "".join(part if part[:1] == '"' else to_ascii(part) for part in parts)
    start = text.find("{")
    before = text[:start] if start >= 0 else text
    if "[" in before:
        raise ParseError("the answer is a JSON list, not an object")
    if start < 0:
        raise ParseError("the answer has no JSON object")
    text = _COMMA_BEFORE_END.sub(lambda match: match.group(1) or "", text[start:])
    try:
        tree, end = json.JSONDecoder(parse_constant=_refuse).raw_decode(text)
    except ParseError:
        raise
    except (ValueError, RecursionError) as error:  # broken, a number of thousands of digits, or nested too deeply
        raise ParseError(f"the answer's JSON is broken: {error}") from error
    if "{" in text[end:]:
        raise ParseError("the answer has more than one JSON object")
    assert isinstance(tree, dict)
    return tree


def _refuse(constant: str) -> NoReturn:
    raise ParseError(f"the answer has the number {constant}")
