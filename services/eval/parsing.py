"""Verdicts out of a judge's answer: one 0 or 1 per test point, by position.

Only `<score>` decides. `<analysis>` is read for itself and tolerantly: what is wrong with it never voids a verdict.
Nothing is guessed: a list of another length, a value other than 0 or 1, or two lists that differ is no verdict.
"""

from __future__ import annotations

import ast
import re
import unicodedata
import warnings

from services.common.judge.answers import after_thinking, to_ascii

_SCORE = re.compile(r"<score>(.*?)</score>", re.DOTALL | re.IGNORECASE)
_OPEN_SCORE = re.compile(r"<score>\s*([\[【［][^\]】］<]*[\]】］])\s*(?:</|```|$)", re.IGNORECASE)
_ANALYSIS = re.compile(r"<analysis>(.*?)</analysis>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```[a-zA-Z]*")
_QUOTES = "\"'`“”‘’"
_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_BETWEEN_ENTRIES = re.compile(r"""(?<=["'”’])\s*[,，]\s*(?=["'“‘])""")


class ParseError(ValueError):
    """The answer holds no verdicts; the message says why."""


def parse_verdicts(answer: str, count: int) -> tuple[int, ...]:
    """The `count` verdicts of an answer that came to its own end, 0 or 1 each. Raises ParseError.

    Survives code fences, line breaks, quoted numbers, trailing commas, full-width characters, a bare value for one
    point, and a list whose tag was not closed.
    """
    text = after_thinking(to_ascii(answer))
    blocks = _SCORE.findall(text) or _OPEN_SCORE.findall(text)
    if not blocks:
        raise ParseError("the answer has no <score>…</score>")
    readings = {_read_list(block, count) for block in blocks}
    if len(readings) > 1:
        raise ParseError(f"the answer has {len(blocks)} <score> lists that differ")
    return readings.pop()


def parse_reasons(answer: str, count: int) -> tuple[str, ...]:
    """What the judge says for each of the `count` points; empty where that cannot be told apart."""
    blocks = _ANALYSIS.findall(after_thinking(answer))
    if not blocks:
        return ()
    text = _FENCE.sub("", blocks[0]).strip()
    entries = _as_literal(text) or _split(text)
    if len(entries) != count and count == 1:
        entries = [text.strip("[]【】 \n")]
    return tuple(entry.strip() for entry in entries) if len(entries) == count else ()


def _read_list(block: str, count: int) -> tuple[int, ...]:
    text = unicodedata.normalize("NFKC", _FENCE.sub("", block)).replace("、", ",").replace("【", "[").replace("】", "]")
    inner = text.strip()
    if inner.startswith("[") != inner.endswith("]"):
        raise ParseError(f"the list in <score> is cut: {_shown(inner)}")
    inner = inner.removeprefix("[").removesuffix("]").strip()
    if not inner:
        raise ParseError("<score> is empty")
    entries = [entry.strip() for entry in inner.split(",")] if "," in inner else inner.split()
    if len(entries) > 1 and not entries[-1]:
        entries.pop()
    values = [_VALUES.get(entry.strip(_QUOTES + " ").lower()) for entry in entries]
    for place, (entry, value) in enumerate(zip(entries, values, strict=True)):
        if value is None:
            raise ParseError(f"entry {place} of <score> is {_shown(entry)}, neither 0 nor 1")
    if len(values) != count:
        raise ParseError(f"<score> has {len(values)} entries for {count} test points")
    return tuple(value for value in values if value is not None)


def _as_literal(text: str) -> list[str]:
    """The list that the text spells in Python or JSON; empty when it spells none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash in a judge's prose is no matter of ours
            tree = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [str(entry) for entry in tree] if isinstance(tree, list | tuple) else []


def _split(text: str) -> list[str]:
    """Entries of a list that is no literal: an apostrophe in single quotes, a line break in a string."""
    entries = _BETWEEN_ENTRIES.split(text.strip().removeprefix("[").removesuffix("]").strip().rstrip(",，"))
    return [entry.strip().strip(_QUOTES) for entry in entries]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
