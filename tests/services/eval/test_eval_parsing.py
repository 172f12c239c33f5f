"""Reading the judge's answers: what the benchmark's own parser loses, and what is no verdict."""

from __future__ import annotations

import pytest

from services.eval.judge import Missing, read_answer
from services.eval.parsing import ParseError, official_verdicts, parse_reasons, parse_verdicts
from services.kit.judge.answers import Answer
from wire.schema import ErrorCode

PUBLISHED = (
    "<description>\n    <prompt>a red cat</prompt>\n    <checkpoint>['Style', 'Attribute - Color']</checkpoint>\n"
    "    <analysis>['It is ink.', 'The cat is grey.']</analysis>\n    <score>[1, 0]</score>\n</description>"
)

READ = {
    "published form": (PUBLISHED, (1, 0)),
    "no spaces": ("<score>[1,0]</score>", (1, 0)),
    "many spaces": ("<score>\n  [ 1 ,\n  0 ]\n</score>", (1, 0)),
    "strings": ("<score>['1', '0']</score>", (1, 0)),
    "double quotes": ('<score>["1", "0"]</score>', (1, 0)),
    "curly quotes": ("<score>[“1”, ‘0’]</score>", (1, 0)),
    "trailing comma": ("<score>[1, 0,]</score>", (1, 0)),
    "no brackets": ("<score>1, 0</score>", (1, 0)),
    "only spaces between": ("<score>[1 0]</score>", (1, 0)),
    "code fence inside": ("<score>```json\n[1, 0]\n```</score>", (1, 0)),
    "code fence outside": (f"```xml\n{PUBLISHED}\n```", (1, 0)),
    "full-width digits and brackets": ("<score>［１，０］</score>", (1, 0)),
    "Chinese comma and brackets": ("<score>【1、0】</score>", (1, 0)),
    "whole floats": ("<score>[1.0, 0.0]</score>", (1, 0)),
    "booleans": ("<score>[True, false]</score>", (1, 0)),
    "capital tag": ("<SCORE>[1, 0]</SCORE>", (1, 0)),
    "scalar": ("<score>1</score>", (1,)),
    "quoted scalar": ("<score>'0'</score>", (0,)),
    "scalar in a list": ("<score>[1]</score>", (1,)),
    "closing tag missing at the end": ("<analysis>[]</analysis><score>[1, 0]", (1, 0)),
    "wrong closing tag": ("<score>[1, 0]</scores></description>", (1, 0)),
    "apostrophe in the analysis": ("<analysis>['the cat's hat', 'x']</analysis><score>[1, 0]</score>", (1, 0)),
    "line break in the analysis": ("<analysis>['a\nb', 'x']</analysis><score>[1, 0]</score>", (1, 0)),
    "analysis of another length": ("<analysis>['a']</analysis><score>[1, 0]</score>", (1, 0)),
    "analysis missing": ("The first holds, the second does not. <score>[1, 0]</score>", (1, 0)),
    "analysis never closed": ("<analysis>['a', 'b'] <score>[1, 0]</score>", (1, 0)),
    "after a thought with another list": ("<think>maybe <score>[0, 0]</score></think><score>[1, 0]</score>", (1, 0)),
    "after a thought that began in the question": ("maybe <score>[0, 0]</score></think><score>[1, 0]</score>", (1, 0)),
    "the same list twice": ("<score>[1, 0]</score> so <score>[1,0]</score>", (1, 0)),
    "ten points": (f"<score>{[1, 0] * 5}</score>", (1, 0) * 5),
}

REFUSED = {
    "empty answer": ("", 2, "no <score>"),
    "only a draft in a thought without an end": ("<think>maybe <score>[1, 0]</score>, but", 2, "no <score>"),
    "no tag": ("[1, 0]", 2, "no <score>"),
    "too few": ("<score>[1]</score>", 2, "1 entries for 2 test points"),
    "too many": ("<score>[1, 0, 1]</score>", 2, "3 entries for 2"),
    "scalar for two": ("<score>1</score>", 2, "1 entries for 2"),
    "digits run together": ("<score>[10]</score>", 2, "'10', neither 0 nor 1"),
    "two": ("<score>[1, 2]</score>", 2, "entry 1 of <score> is '2'"),
    "half": ("<score>[0.5, 1]</score>", 2, "entry 0 of <score> is '0.5'"),
    "minus": ("<score>[-1, 1]</score>", 2, "'-1'"),
    "words": ("<score>[yes, no]</score>", 2, "'yes'"),
    "named": ("<score>{'Style': 1, 'Color': 0}</score>", 2, "neither 0 nor 1"),
    "gap": ("<score>[1,,0]</score>", 2, "entry 1 of <score> is ''"),
    "a gap that makes the count right": ("<score>[1,,0]</score>", 3, "entry 1"),
    "nan": ("<score>[nan, 1]</score>", 2, "'nan'"),
    "empty list": ("<score>[]</score>", 2, "is empty"),
    "empty tag": ("<score></score>", 1, "is empty"),
    "cut list": ("<score>[1, 0</score>", 2, "is cut"),
    "two lists that differ": ("<score>[1, 0]</score><score>[0, 0]</score>", 2, "2 <score> lists that differ"),
    "the form itself": ("<score>[1 or 0 for the first point, ...]</score>", 2, "neither 0 nor 1"),
    "only thought": ("<think><score>[1, 0]</score></think>", 2, "no <score>"),
    "nested": ("<score>[[1], [0]]</score>", 2, "neither 0 nor 1"),
}


ANALYSIS = "<analysis>['a', 'b']</analysis>"
# What the benchmark's own tool makes of an answer about two points.
OFFICIAL = {
    "published form": (PUBLISHED, (1, 0)),
    "quoted numbers have failed": (f"{ANALYSIS}<score>['1', '1']</score>", (0, 0)),
    "some quoted": (f"{ANALYSIS}<score>[1, '1']</score>", (1, 0)),
    "floats and booleans": (f"{ANALYSIS}<score>[1.0, True]</score>", (1, 1)),
    "another value has failed": (f"{ANALYSIS}<score>[2, 1]</score>", (0, 1)),
    "double quotes and an apostrophe": ('<analysis>["the cat\'s hat", "b"]</analysis><score>[1, 0]</score>', (1, 0)),
    "an apostrophe that is escaped": ("<analysis>['the cat\\'s hat', 'b']</analysis><score>[1, 0]</score>", (1, 0)),
    "an apostrophe that is not": ("<analysis>['the cat's hat', 'b']</analysis><score>[1, 0]</score>", None),
    "a line break in the analysis": ("<analysis>['a\nb', 'x']</analysis><score>[1, 0]</score>", None),
    "a line break between entries": ("<analysis>['a',\n 'x']</analysis>\n<score>\n[1, 0]\n</score>", (1, 0)),
    "a code fence": (f"{ANALYSIS}<score>```[1, 0]```</score>", None),
    "no analysis": ("<score>[1, 0]</score>", None),
    "an analysis of another length": ("<analysis>['a']</analysis><score>[1, 0]</score>", None),
    "scores of another length": (f"{ANALYSIS}<score>[1]</score>", None),
    "a scalar": (f"{ANALYSIS}<score>1</score>", None),
    "a tag in capitals": (f"{ANALYSIS}<SCORE>[1, 0]</SCORE>", None),
    "a tag that is not closed": (f"{ANALYSIS}<score>[1, 0]", None),
    "a draft in a thought": (f"<think><score>[0, 0]</score></think>{ANALYSIS}<score>[1, 1]</score>", (0, 0)),
    "full width": (f"{ANALYSIS}<score>［１，０］</score>", None),
    "words": (f"{ANALYSIS}<score>[yes, no]</score>", None),
    "empty": ("", None),
    "deep": (f"{ANALYSIS}<score>{'[' * 5000}</score>", None),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_benchmarks_own_reading(name: str) -> None:
    answer, verdicts = OFFICIAL[name]
    assert official_verdicts(answer, 2) == verdicts


@pytest.mark.parametrize("name", READ)
def test_verdicts_are_read(name: str) -> None:
    answer, verdicts = READ[name]
    assert parse_verdicts(answer, len(verdicts)) == verdicts


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_verdict_is_refused_with_the_reason(name: str) -> None:
    answer, count, reason = REFUSED[name]
    with pytest.raises(ParseError) as caught:
        parse_verdicts(answer, count)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("analysis", "count", "reasons"),
    [
        ("['It is ink.', 'The cat is grey.']", 2, ("It is ink.", "The cat is grey.")),
        ('["It is ink.", "The cat\'s hat"]', 2, ("It is ink.", "The cat's hat")),
        ("['the cat's hat', 'its owner's shoe']", 2, ("the cat's hat", "its owner's shoe")),
        ("['one\ntwo', 'three']", 2, ("one\ntwo", "three")),
        ("['the words \"a\", \"b\" are there', 'x']", 2, ('the words "a", "b" are there', "x")),
        ("['a', 'b',]", 2, ("a", "b")),
        ("```\n['a', 'b']\n```", 2, ("a", "b")),
        ("[“第一”，“第二”]", 2, ("第一", "第二")),
        ("[r'\\d is a digit', '\\d']", 2, ("\\d is a digit", "\\d")),
        ("Nothing red is to be seen.", 1, ("Nothing red is to be seen.",)),
        ("['only one']", 2, ()),
        ("", 2, ()),
        ("[" * 5000, 2, ()),
    ],
)
def test_reasons_are_read_tolerantly(analysis: str, count: int, reasons: tuple[str, ...]) -> None:
    assert parse_reasons(f"<analysis>{analysis}</analysis><score>[1, 0]</score>", count) == reasons


def test_an_answer_without_analysis_has_no_reasons() -> None:
    assert parse_reasons("<score>[1]</score>", 1) == ()


def test_a_cut_answer_is_told_apart_from_one_that_cannot_be_read() -> None:
    cut = read_answer(Answer("<analysis>['a', 'b']</analysis><score>[1, 0]", truncated=True, completion_tokens=9), 2)
    assert isinstance(cut, Missing) and cut.code is ErrorCode.TRUNCATED and "after 9 tokens" in cut.message
    wrong = read_answer(Answer("I cannot tell.", truncated=False), 2)
    assert isinstance(wrong, Missing) and wrong.code is ErrorCode.PARSE_ERROR and wrong.answer == "I cannot tell."


def test_an_answer_that_was_cut_holds_no_verdicts_whatever_it_says() -> None:
    result = read_answer(Answer("<score>[1, 0]</score>\n</descr", truncated=True), 2)
    assert isinstance(result, Missing) and result.code is ErrorCode.TRUNCATED
