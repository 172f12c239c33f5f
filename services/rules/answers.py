"""Rewards of text answers: the letter of an option, a number, a text, or whichever of them the target is.

All read the item's `completion`. What the policy wrote decides between 0 and 1; what the data lacks is no score:

- an empty answer, an answer that cannot be read, and one that can be read in two ways are 0: the policy was asked and did
  not say the right thing, and this is what it shall learn;
- an item without `targets` asks for no answer: `not_applicable`;
- an item without a `completion`, or with a target that the rule cannot read, is a mistake in the data: `bad_input`.

`answer_of` finds the answer: what follows the last `</think>`, and of it the inside of `<answer>...</answer>` where there is one.
An answer that stands in the thinking alone, or after a `<think>` that never ends, is none. `loose_answer_of` forgives tags
that are not closed, for the reward `answer`: beside a reward of the form, each says what the other does not.
"""

from __future__ import annotations

import math
import operator
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from services.kit.judge.answers import to_ascii
from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode

# Numbers are equal when they differ by no more than this share of the larger one, or by no more than this near 0.
TOLERANCE: Final = 1e-6

OPTION_LETTER_REVISION: Final = "1"
NUMBER_REVISION: Final = f"1+tolerance-{TOLERANCE:g}"
EXACT_REVISION: Final = "1"
ANSWER_REVISION: Final = f"1+tolerance-{TOLERANCE:g}"

_SHOWN: Final = 200  # characters of an answer in the details
T = TypeVar("T")

_AROUND: Final = " \"'`*_\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"  # blanks, quotes, Markdown
_ENDS: Final = ".,;:!?"  # to_ascii has made them of the East Asian ones
# The answer's blanks are single ones when these are read, so that a long run of them costs no time.
_LEAD: Final = r"(?:the )?(?:(?:final|correct|right|best) )?(?:answer|option|choice)(?: is)? ?[:=]? ?"
_MARKS: Final = r"[*_`\"']*"  # of Markdown and quotes
# A letter in brackets, alone, or before what separates it from the option's text; "A dog" is a text, not the letter A.
_OPTION: Final = re.compile(
    rf"(?:{_LEAD})?{_MARKS}(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?={_MARKS} ?(?:$|[.):])))", re.IGNORECASE | re.ASCII
)
_LETTER: Final = re.compile(r"[(\[]?([A-Z])(?:[)\]][.:]?|[.:])?", re.IGNORECASE | re.ASCII)
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
    right = found is not None and any(_equal(found, target) for target in targets)
    return Score(float(right), details={"read": found})


def exact_answer(item: Item) -> Result:
    """1 when the answer is a target word for word, else 0. `normalized` says what does not count."""
    targets = _targets(item, normalized, "a text")
    if isinstance(targets, Failure):
        return targets
    found = normalized(answer_of(item.completion or ""))
    return Score(float(found is not None and found in targets), details={"read": _shown(found)})


def answer(item: Item) -> Result:
    """1 when the answer is right by the rule that the target asks for, else 0: one accuracy for questions of all kinds.

    A target that is a letter ("B", "(b)", "B.") is compared as `option_letter` does, one that is a number and nothing else as
    `number` does, any other as `exact_answer` does. With several targets each is compared by its own rule, and any is enough.
    """
    asked = _targets(item, _rule_of, "a text")
    if isinstance(asked, Failure):
        return asked
    said = loose_answer_of(item.completion or "")
    found = [(rule, rule.read(said)) for rule, _ in asked]
    right = [
        place
        for place, ((rule, target), (_, read)) in enumerate(zip(asked, found, strict=True))
        if read is not None and rule.same(read, target)
    ]
    rule, read = found[right[0] if right else 0]
    return Score(float(bool(right)), details={"rule": rule.name, "read": _shown(read)})


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


def loose_answer_of(completion: str) -> str:
    """The answer in a completion, whether or not its tags are closed; "" where there is none, or more than one.

    What stands after the last `</think>` counts. In it an `<answer>` ends a thinking that was not closed, and itself ends
    with `</answer>` or the text.
    """
    rest = completion.rpartition("</think>")[2]
    before, opened, inside = rest.partition("<answer>")
    if opened:
        return "" if "<answer>" in inside else inside.partition("</answer>")[0].strip()
    return "" if "<think>" in before else before.replace("</answer>", " ").strip()


def normalized(text: str) -> str | None:
    """A text without what does not count when answers are compared; None where nothing is left.

    What does not count: upper or lower case; how many blanks stand between words; full-width forms of letters and signs;
    and at the ends blanks, quotes and the marks of Markdown, at the end also the marks that end a sentence. All else does:
    articles, signs within the text, brackets, a minus or a point before a number.
    """
    text = unicodedata.normalize("NFC", to_ascii(unicodedata.normalize("NFC", text)).casefold())
    text = " ".join(text.split()).lstrip(_AROUND).rstrip(_AROUND + _ENDS)
    return text or None


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
        return no_completion()
    if not item.targets:
        return Failure(ErrorCode.NOT_APPLICABLE, "the item has no `targets`, so no answer is asked for")
    found = []
    for target in item.targets:
        value = read(target)
        if value is None:
            return Failure(ErrorCode.BAD_INPUT, f"`targets` has {target!r:.80}, which is not {what}")
        found.append(value)
    return found


@dataclass(frozen=True)
class _Rule:
    """How an answer is read, and when what was read is the target."""

    name: str
    read: Callable[[str], Any]
    same: Callable[[Any, Any], bool]


def _rule_of(target: str) -> tuple[_Rule, Any] | None:
    """The rule that a target asks for, and the target as that rule reads it; None for a blank one."""
    text = target.strip()
    if letter := _LETTER.fullmatch(text):
        return _LETTER_RULE, letter[1].upper()
    value = read_number(text) if _NUMBER.fullmatch(text.replace("\N{MINUS SIGN}", "-")) else None
    if value is not None:
        return _NUMBER_RULE, value
    wanted = normalized(text)
    return None if wanted is None else (_TEXT_RULE, wanted)


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


_LETTER_RULE: Final = _Rule("letter", read_letter, operator.eq)
_NUMBER_RULE: Final = _Rule("number", read_number, _equal)
_TEXT_RULE: Final = _Rule("text", normalized, operator.eq)


def _shown(read: Any) -> Any:
    return read if not isinstance(read, str) or len(read) <= _SHOWN else f"{read[:_SHOWN]}…"


def no_completion() -> Failure:
    return Failure(ErrorCode.BAD_INPUT, "an answer is read from the `completion`, and the item has none")
