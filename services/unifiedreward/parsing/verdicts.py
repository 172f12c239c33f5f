"""Answers that name the better image in words: UnifiedReward-Think, UnifiedReward 1.0 ranking, UnifiedReward-Edit."""

from __future__ import annotations

import re

from services.kit.judge.answers import to_ascii
from services.unifiedreward.parsing.common import (
    NUMBER,
    TIE,
    Judgement,
    ParseError,
    plain,
    spoken,
    to_number,
)

# "Image 1 is better", "Edited image 2 is better.", "Image 1 is better than Image 2."
_BETTER = r"(?:edited )?image ?([12]) is (?:the )?better(?: (?:one|image))?(?: than (?:edited )?image ?([12]))?"
_EQUAL = r"both (?:edited )?images are equally good"
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_STATEMENT = re.compile(rf"(?<!\w){_BETTER}(?=\s*[.!?;\"'”’<)]|\s*$)", re.IGNORECASE)
_EQUAL_STATEMENT = re.compile(_EQUAL, re.IGNORECASE)
_DOUBT = re.compile(r"\b(?:not|neither|nor|whether|if|cannot)\b|n['’]t\b", re.IGNORECASE)
_CLOSE = 120  # characters before a statement in which a doubt concerns it
_OPENS = re.compile(r"<answer>", re.IGNORECASE)
_CLOSES = re.compile(r"</answer>", re.IGNORECASE)
_WHOLE_ANSWER = re.compile(rf"(?:{_BETTER}|(?:edited )?image ?([12]))", re.IGNORECASE)
_WHOLE_TIE = re.compile(rf"{_EQUAL}|tie|equal", re.IGNORECASE)
_TOTAL = re.compile(rf"^image ?([12]) ?:[^=\n]*=\s*({NUMBER})\s*$", re.IGNORECASE | re.MULTILINE)
_SCORE = re.compile(
    rf"(?<!\w)image ?([12])(?:['’]s)?(?: [a-z ]{{0,40}})?(?: ?\([^)\n]{{0,40}}\))? ?(?:[:=]|\bis\b) ?\[?({NUMBER}|[-+]?(?:nan|inf\w*))(?![\w.]*\w|\+)",
    re.IGNORECASE,
)
_TWO_NUMBERS = re.compile(rf"\s*[\[(]?\s*({NUMBER})\s*[,;\s]\s*({NUMBER})\s*[\])]?\s*")


def read_think(text: str) -> Judgement:
    """`<think>…</think><answer>Image 1 is better</answer>`. Only what the one answer tag says counts.

    The totals written while thinking are compared with the answer: a winner with the lower total is flagged
    `totals_disagree`, and stays the winner.
    """
    visible = spoken(text)
    answers = _OPENS.split(visible)[1:]
    if len(answers) > 1:
        raise ParseError(f"the answer has {len(answers)} <answer> tags")
    answer, *rest = _CLOSES.split(answers[0]) if answers else [""]
    if not rest:
        raise ParseError("the answer has no complete <answer> tag")
    words = plain(answer).replace("\n", " ").strip(" .!\"'“”‘’[]")
    share = _whole_answer(words)
    totals = {int(image): float(total) for image, total in _TOTAL.findall(plain(to_ascii(text)))}
    disagree = len(totals) == 2 and share != TIE and (totals[1] - totals[2]) * (share - TIE) < 0
    return Judgement(share, flags=("totals_disagree",) if disagree else ())


def read_rank(text: str) -> Judgement:
    """Free text with one statement such as `Image 1 is better.` or `Both images are equally good.`"""
    said: set[float] = set()
    for sentence in _SENTENCE.split(plain(spoken(text))):
        for match in _STATEMENT.finditer(sentence):
            if not _doubted(sentence, match):
                said.add(_winner(match.group(1), match.group(2)))
        equal = _EQUAL_STATEMENT.search(sentence)
        if equal and not _doubted(sentence, equal):
            said.add(TIE)
    return Judgement(_only(said))


def read_edit_rank(text: str) -> Judgement:
    """`Edited image 1 is better`, in an answer tag or in free text."""
    return read_think(text) if _OPENS.search(spoken(text)) else read_rank(text)


def read_edit_scores(text: str) -> Judgement:
    """A score for each edited image, whole or decimal, negative ones included; the higher one wins, equal is a tie."""
    words = plain(spoken(text))
    bare = _TWO_NUMBERS.fullmatch(words)
    found = [("1", bare.group(1)), ("2", bare.group(2))] if bare else _SCORE.findall(words)
    scores: dict[str, float] = {}
    for image, number in found:
        value = to_number(number, f"the score of image {image}")
        if scores.setdefault(image, value) != value:
            raise ParseError(f"image {image} has two scores, {scores[image]:g} and {value:g}")
    if len(scores) < 2:
        missing = " and ".join(sorted({"1", "2"} - set(scores)))
        raise ParseError(f"the answer has no score for image {missing}")
    difference = scores["1"] - scores["2"]
    return Judgement(TIE if difference == 0 else float(difference > 0))


def _whole_answer(words: str) -> float:
    if _WHOLE_TIE.fullmatch(words):
        return TIE
    match = _WHOLE_ANSWER.fullmatch(words)
    if match:
        better, other, alone = match.groups()
        return _winner(better or alone, other)
    named = set(re.findall(r"image ?([12])", words, re.IGNORECASE))
    if len(named) == 2:
        raise ParseError("the <answer> tag names both images")
    raise ParseError(f"the <answer> tag says {words[:80]!r}, which names no better image")


def _doubted(sentence: str, match: re.Match[str]) -> bool:
    return _DOUBT.search(sentence, max(0, match.start() - _CLOSE), match.start()) is not None


def _winner(number: str, other: str | None) -> float:
    if number == other:
        raise ParseError(f"the answer says that image {number} is better than itself")
    return float(number == "1")


def _only(said: set[float]) -> float:
    if not said:
        raise ParseError("the answer does not say which image is better")
    if len(said) > 1:
        raise ParseError("the answer says one thing and its opposite")
    return said.pop()
