"""Rewards of text answers: the letter of an option, a number, and the form think-then-answer.

All three read the item's `completion`. What the policy wrote decides between 0 and 1; what the data lacks is no score:

- an empty answer, an answer that cannot be read, and one that can be read in two ways are 0: the policy was asked and did
  not say the right thing, and this is what it shall learn;
- an item without `targets` asks for no answer: `not_applicable`;
- an item without a `completion`, or with a target that is no letter or no number, is a mistake in the data: `bad_input`.

`answer_of` finds the answer: what follows the last `</think>`, and of it the inside of `<answer>...</answer>` where there is one.
An answer that stands in the thinking alone, or after a `<think>` that never ends, is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode

# Numbers are equal when they differ by no more than this share of the larger one, or by no more than this near 0.
TOLERANCE: Final = 1e-6

OPTION_LETTER_REVISION: Final = "1"
NUMBER_REVISION: Final = f"1+tolerance-{TOLERANCE:g}"
THINK_FORMAT_REVISION: Final = "1"

T = TypeVar("T")

_TAGS: Final = ("<think>", "</think>", "<answer>", "</answer>")
# The answer's blanks are single ones when these are read, so that a long run of them costs no time.
_LEAD: Final = r"(?:the )?(?:(?:final|correct|right|best) )?(?:answer|option|choice)(?: is)? ?[:=]? ?"
_MARKS: Final = r"[*_`\"']*"  # of Markdown and quotes
# A letter in brackets, alone, or before what separates it from the option's text; "A dog" is a text, not the letter A.
_OPTION: Final = re.compile(
    rf"(?:{_LEAD})?{_MARKS}(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?={_MARKS} ?(?:$|[.):])))", re.IGNORECASE | re.ASCII
)
# Digits in groups of three may have commas. What continues a word or another number is none of its own.
_NUMBER: Final = re.compile(
    r"(?<![\w.,])[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?(?![.,]?\d)",
    re.IGNORECASE | re.ASCII,
)


def option_letter(item: Item) -> Result:
    """1 when the answer's option letter is that of a target, else 0. Upper and lower case are the same letter.

    Read as a letter: "B", "(b)", "[B]", "B.", "B) two cats", "**B**", "Answer: B", "The correct option is (B)". Not read, so 0:
    a sentence that begins with a word of one letter, and a list of letters such as "A, B" or "A or B".
    """
    targets = _targets(item, read_letter, "an option's letter, such as B")
    if isinstance(targets, Failure):
        return targets
    found = read_letter(answer_of(item.completion or ""))
    return Score(float(found in targets), details={"read": found})


def number(item: Item) -> Result:
    """1 when the answer's number equals a target within TOLERANCE, else 0.

    The answer must hold exactly one number, and may have words around it: "42", "-1.5e3", "1,234 cats", "x = 42", "42%" (which
    is 42). None and several are 0: "41 or 42", "3/4", "1.2.3", and "1,23", which may mean two things.
    """
    targets = _targets(item, read_number, "one number, such as 42")
    if isinstance(targets, Failure):
        return targets
    found = read_number(answer_of(item.completion or ""))
    right = found is not None and any(
        math.isclose(found, target, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for target in targets
    )
    return Score(float(right), details={"read": found})


def think_format(item: Item) -> Result:
    """1 for `<think>...</think>` once and then `<answer>...</answer>` once, with nothing but blanks around; else 0.

    The answer must not be blank; the thinking may be. Needs no target: the form is asked of every completion.
    """
    if item.completion is None:
        return _no_completion()
    text = item.completion.strip()
    places = [text.find(tag) for tag in _TAGS]
    once = all(text.count(tag) == 1 for tag in _TAGS)
    if not once or places != sorted(places) or places[0] != 0 or not text.endswith(_TAGS[3]):
        return Score(0.0)
    between = text[places[1] + len(_TAGS[1]) : places[2]]
    answer = text[places[2] + len(_TAGS[2]) : places[3]]
    return Score(float(not between.strip() and bool(answer.strip())))


def answer_of(completion: str) -> str:
    """The answer in a completion, without blanks around it; "" where there is none, or more than one in tags."""
    rest = completion.rpartition("</think>")[2]
    if "<think>" in rest:  # opened again, or never closed
        return ""
    opened, closed = rest.count("<answer>"), rest.count("</answer>")
    if not opened and not closed:
        return rest.strip()
    if opened != 1 or closed != 1:
        return ""
    inside = rest.partition("<answer>")[2]
    return inside.partition("</answer>")[0].strip() if "</answer>" in inside else ""


def read_letter(answer: str) -> str | None:
    """The option's letter, in upper case; None where the answer is not one option."""
    match = _OPTION.match(" ".join(answer.split()))
    if match is None:
        return None
    return str(match[1] or match[2] or match[3]).upper()


def read_number(answer: str) -> float | None:
    """The only number of an answer; None where there is none, or several, or one beyond what a float holds."""
    found = _NUMBER.findall(answer.replace("\N{MINUS SIGN}", "-"))
    if len(found) != 1:
        return None
    value = float(found[0].replace(",", ""))
    return value if math.isfinite(value) else None


def _targets(item: Item, read: Callable[[str], T | None], what: str) -> Sequence[T] | Failure:
    """The item's targets as `read` reads them, any one of which is right; or why the item has no score."""
    if item.completion is None:
        return _no_completion()
    if not item.targets:
        return Failure(ErrorCode.NOT_APPLICABLE, "the item has no `targets`, so no answer is asked for")
    found = []
    for target in item.targets:
        value = read(target)
        if value is None:
            return Failure(ErrorCode.BAD_INPUT, f"`targets` has {target!r:.80}, which is not {what}")
        found.append(value)
    return found


def _no_completion() -> Failure:
    return Failure(ErrorCode.BAD_INPUT, "an answer is read from the `completion`, and the item has none")
