"""Verdicts out of a judge's answer: one 0 or 1 per test point, by position.

Only `<score>` decides. `<analysis>` is read for itself and tolerantly: what is wrong with it never voids a verdict.
Nothing is guessed: a list of another length, a value other than 0 or 1, or two lists that differ is no verdict.

The benchmark's own tool reads the same answers by a stricter and blinder rule. `official_verdicts` is that reading, since
the leaderboard was made with it.
"""

from __future__ import annotations

import ast
import re
import unicodedata
import warnings

from services.kit.judge.answers import after_thinking, to_ascii

_SCORE = re.compile(r"<score>(.*?)</score>", re.DOTALL | re.IGNORECASE)
_OPEN_SCORE = re.compile(r"<score>\s*([\[【［][^\]】］<]*[\]】］])\s*(?:</|```|$)", re.IGNORECASE)
_ANALYSIS = re.compile(r"<analysis>(.*?)</analysis>", re.DOTALL | re.IGNORECASE)
_OFFICIAL_LISTS = [re.compile(rf"<{tag}>(.*?)</{tag}>", re.DOTALL) for tag in ("analysis", "score")]
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


def official_verdicts(answer: str, count: int) -> tuple[int, ...] | None:
    """How the benchmark's own tool reads an answer (CodeGoat24/UniGenBench, eval/src/eval_common.py), None where it does not.

    The first `<analysis>` and the first `<score>`, thoughts included, must each be a Python literal of `count` entries, so
    an apostrophe that is not escaped or a code fence loses the answer. Of the scores the number 1 passes; all else has
    failed, such as '1' in quotes.
    """
    lists = []
    for pattern in _OFFICIAL_LISTS:
        found = pattern.search(answer)
        literal = _literal(found.group(1).strip()) if found else None
        if not isinstance(literal, list | tuple | str | dict | set) or len(literal) != count:
            return None
        lists.append(literal)
    return tuple(int(entry == 1) for entry in lists[1])


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
    tree = _literal(text)
    return [str(entry) for entry in tree] if isinstance(tree, list | tuple) else []


def _literal(text: str) -> object:
    """What the text spells as a Python literal; None when it spells none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash in a judge's prose is no matter of ours
            tree: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return tree


def _split(text: str) -> list[str]:
    """Entries of a list that is no literal: an apostrophe in single quotes, a line break in a string."""
    entries = _BETWEEN_ENTRIES.split(text.strip().removeprefix("[").removesuffix("]").strip().rstrip(",，"))
    return [entry.strip().strip(_QUOTES) for entry in entries]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
