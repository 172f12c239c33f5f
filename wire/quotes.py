"""The texts that a prompt quotes: what OCR looks for where an item names no `targets`.

Services and the trainer find them with this one function, so that both mean the same texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# An opening mark never occurs inside its own pair, which keeps the scan linear on hostile prompts. A curly single
# quote closes only where no letter follows: it is also the apostrophe.
_MARKED = re.compile(
    r'"(?P<straight>[^"]*)"'
    r"|＂([^＂]*)＂"
    r"|“([^“”]*)”"
    r"|„([^„“”]*)[“”]"
    r"|‚((?:[^‚‘’]|’(?=\w))*)[‘’](?!\w)"
    r"|«([^«»]*)»"
    r"|»([^«»]*)«"
    r"|‹([^‹›]*)›"
    r"|›([^‹›]*)‹"
    r"|‘((?:[^‘’]|’(?=\w))*)’(?!\w)"
    r"|「([^「」]*)」"
    r"|『([^『』]*)』"
)
# Words that begin with an apostrophe: 'tis, rock 'n' roll, '90s. They open no quotation.
_ELISION = re.compile(r"'(?:(?:tis|twas|til|till|em|cause|bout|n)(?!\w)|\d\ds(?!\w))", re.IGNORECASE)
# What follows the apostrophe inside a word: it's, don't, they're, o'clock, y'all.
_CONTRACTED = re.compile(r"'(?:s|t|d|m|n|re|ve|ll|em|er|all|clock)(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Quotation:
    """A text in quotes. `straight`: it stands in straight double quotes."""

    text: str
    straight: bool


def quotations(prompt: str) -> list[Quotation]:
    """Quotations that are not blank, in order of appearance.

    Quotes are double or single (straight, curly, low, angled, full-width) or CJK corner brackets. A straight single
    quote is read as an apostrophe wherever it can be one (it's, the dogs' bowls, 'tis, rock 'n' roll). Quotes that are
    not closed quote nothing.
    """
    found = []
    end = 0
    for match in _MARKED.finditer(prompt):
        found += _single(prompt[end : match.start()])
        found.append(Quotation(match.group(match.lastindex or 0), match.group("straight") is not None))
        end = match.end()
    found += _single(prompt[end:])
    return [quotation for quotation in found if quotation.text.strip()]


def quoted_texts(prompt: str, *, straight_first: bool = False) -> list[str]:
    """The texts of `quotations`; with `straight_first` those in straight double quotes come before all others."""
    found = quotations(prompt)
    if straight_first:
        found = sorted(found, key=lambda quotation: not quotation.straight)
    return [quotation.text for quotation in found]


def _single(text: str) -> list[Quotation]:
    """Quotations in straight single quotes in a part of a prompt that has no other quotes."""
    found = []
    marks = [match.start() for match in re.finditer("'", text)]
    at = 0
    while at < len(marks):
        closing = _closing(text, marks, at) if _opens(text, marks[at]) else None
        if closing is None:
            at += 1
            continue
        found.append(Quotation(text[marks[at] + 1 : marks[closing]], straight=False))
        at = closing + 1
    return found


def _closing(text: str, marks: list[int], opening: int) -> int | None:
    """Which of `marks` closes the quotation that one of them opens; None where none does."""
    run_on = None  # a closing mark with a letter right after it, for want of a better one: 'Green Home'on the roof
    for place in range(opening + 1, len(marks)):
        mark = marks[place]
        if _opens(text, mark):
            break
        if _closes(text, mark):
            later = marks[place + 1] if place + 1 < len(marks) else None
            if later is not None and _is_possessive(text, marks[opening], mark, later):
                continue
            return place
        if run_on is None and _runs_on(text, mark):
            run_on = place
    return run_on


def _opens(text: str, mark: int) -> bool:
    """No letter before it, no space after it, and not an apostrophe that begins a word."""
    before, after = text[mark - 1 : mark], text[mark + 1 : mark + 2]
    return not before.isalnum() and bool(after.strip()) and after != "'" and not _ELISION.match(text, mark)


def _closes(text: str, mark: int) -> bool:
    """No space before it and no letter after it."""
    before, after = text[mark - 1 : mark], text[mark + 1 : mark + 2]
    return bool(before.strip()) and not after.isalnum()


def _is_possessive(text: str, opening: int, mark: int, later: int) -> bool:
    """Whether a closing mark after an s is an apostrophe, as in 'Farmers' Market', where `later` is the next mark.

    It is one where the next mark closes too and is none itself (no s before it), or where the words up to it go on in
    capitals as the quotation began.
    """
    if text[mark - 1] not in "sS" or _opens(text, later) or not _closes(text, later):
        return False
    words = text[mark + 1 : later].split()
    title = text[opening + 1].isupper() and all(not word[0].islower() for word in words)
    return title or text[later - 1] not in "sS"


def _runs_on(text: str, mark: int) -> bool:
    """A mark inside a word that no contraction or name (O'Neill, l'amour) has there."""
    before, after = text[max(mark - 2, 0) : mark], text[mark + 1 : mark + 2]
    return len(before) == 2 and before.isalpha() and after.islower() and not _CONTRACTED.match(text, mark)
