"""Options of a multiple-choice question, and which of them an answer means.

Three ways to write them are read, the first that has at least A and B in this order:

- a line each: "A. a cat", "(A) a cat", "A) a cat", "A: a cat";
- within a line, by the same marks: "What is it? A. a cat B. a dog";
- within a line, by bare letters: "colour left ? A red B orange". These may as well be words of a sentence ("is A taller than
  B?"), so they are options only to an answer that is a letter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.data.prompts.checks import DataError, shown
from trainer.data.same_images import normalised

_MARKED = r"(?:[(\[]([A-Z])[)\]][.:]?|([A-Z])[.):])"
_LINES = re.compile(rf"^[ \t]*{_MARKED}[ \t]*", re.MULTILINE)
_WITHIN = re.compile(rf"(?:(?<=\s)|^){_MARKED}(?=\s)")
_BARE = re.compile(r"(?:(?<=\s)|^)()([A-Z])(?=\s)")
_LETTER = re.compile(r"[(\[]?([A-Za-z])(?:[)\]][.:]?|[.:])?")
_LETTER_AND_TEXT = re.compile(rf"{_MARKED}\s+(.+)", re.DOTALL)


@dataclass(frozen=True)
class Options:
    """The options of a question: texts by letter, in order from A.

    Attributes:
        sure: whether they are marked as such, and not bare letters that may be words.
    """

    texts: dict[str, str]
    sure: bool


def options_of(question: str) -> Options | None:
    """The options that a question lists; None where it lists none."""
    for pattern, sure in ((_LINES, True), (_WITHIN, True), (_BARE, False)):
        run = _run(list(pattern.finditer(question)))
        if len(run) >= 2:
            ends = [match.start() for match in run[1:]] + [len(question)]
            found = zip(run, ends, strict=True)
            # What follows the last option, such as how to answer, stands on a line of its own.
            return Options({_letter(m): question[m.end() : end].strip().partition("\n")[0] for m, end in found}, sure)
    return None


def right_option(where: str, answer: str, options: Options | None) -> str | None:
    """The letter of the option that an answer means; None where the question lists no options to compare it with.

    An answer may be the letter ("B", "b", "(B)", "B."), the letter with the option's text ("B. a dog"), or that text alone.

    Raises:
        DataError: it is none of the options.
    """
    text = answer.strip()
    letter = _LETTER.fullmatch(text)
    if options is None or (letter is None and not options.sure):
        return None
    if letter is not None:
        asked = letter[1].upper()
        if asked in options.texts:
            return asked
        raise DataError(
            f"{where}: {shown(text)} is none of the question's options {_listed(options)}; correct the answer, or the options"
        )
    wanted = normalised(text)
    both = _LETTER_AND_TEXT.fullmatch(text)
    if both is not None:
        wanted = normalised(both[3])
    same = [name for name, said in options.texts.items() if normalised(said) == wanted]
    if both is not None:
        same = [name for name in same if name == _letter(both)]
    if len(same) == 1:
        return same[0]
    raise DataError(
        f"{where}: {shown(text)} is none of the question's options {_listed(options)}; give the letter of the right one"
    )


def _run(matches: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """The longest run of letters in the alphabet's order that starts with A; the first of several."""
    best: list[re.Match[str]] = []
    run: list[re.Match[str]] = []
    for match in matches:
        if _letter(match) == chr(ord("A") + len(run)):
            run.append(match)
        else:
            run = [match] if _letter(match) == "A" else []
        if len(run) > len(best):
            best = list(run)
    return best


def _letter(match: re.Match[str]) -> str:
    return str(match[1] or match[2])


def _listed(options: Options) -> str:
    return ", ".join(options.texts)
