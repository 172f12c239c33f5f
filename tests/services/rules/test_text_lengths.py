"""Rewards of the length of a text: what is counted, against which limit, and what is no score."""

from __future__ import annotations

import pytest

from services.kit.scorer import Failure, Item, Score
from services.kit.settings import load_settings
from services.rules.__main__ import RulesSettings, make_scorer
from services.rules.lengths import Lengths
from services.rules.scorer import RulesScorer
from wire.schema import ErrorCode


def item(completion: str | None = "a text", tokens: int | None = None, **metadata: object) -> Item:
    ids = {} if tokens is None else {"completion_ids": list(range(tokens))}
    return Item("a", "?", completion=completion, metadata=ids | metadata)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokens", "score"), [(0, 0.0), (2, 0.2), (5, 0.5), (10, 1.0), (12, 0.8), (19, 0.1), (20, 0.0), (500, 0.0)]
)
def test_near_the_target_is_more(tokens: int, score: float) -> None:
    result = Lengths(target=10).length(item(tokens=tokens))
    assert isinstance(result, Score)
    assert result.value == pytest.approx(score)
    assert result.components == {"tokens": float(tokens)} and result.details == {"target": 10}


@pytest.mark.parametrize(
    ("tokens", "score"), [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0), (10_000, -1.0)]
)
def test_the_penalty_of_long_texts_is_dapos(tokens: int, score: float) -> None:
    """arXiv 2503.14476, equation 13, with L_max 100 and L_cache 20: 0, then (80 - length) / 20, then -1."""
    result = Lengths(longest=100, buffer=20).overlong(item(tokens=tokens))
    assert isinstance(result, Score) and result.value == pytest.approx(score)


def test_metadata_wins_over_the_flags() -> None:
    lengths = Lengths(target=10, longest=100, buffer=20)
    near = lengths.length(item(tokens=4, target_length=4))
    late = lengths.overlong(item(tokens=4, max_length=4, overlong_buffer=2))
    assert isinstance(near, Score) and isinstance(late, Score)
    assert (near.value, late.value) == (1.0, -1.0)


@pytest.mark.parametrize(("unit", "count"), [("words", 3.0), ("characters", 13.0), ("tokens", 7.0)])
def test_what_is_counted(unit: str, count: float) -> None:
    result = Lengths(unit, 5).length(item("two red  cats", tokens=7))  # type: ignore[arg-type]
    assert isinstance(result, Score) and result.components == {unit: count}


def test_what_the_data_lacks_is_no_score() -> None:
    lengths = Lengths()
    for result, flag in (
        (lengths.length(item(tokens=3)), "--target-length"),
        (lengths.overlong(item(tokens=3)), "--max-length"),
        (lengths.overlong(item(tokens=3, max_length=4)), "--overlong-buffer"),
    ):
        assert isinstance(result, Failure) and result.code is ErrorCode.NOT_APPLICABLE and flag in result.message


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (item(None, tokens=3, target_length=4), "`completion`"),
        (item(target_length=4), "`metadata.completion_ids` is not there: send the ids"),
        (item(target_length=4, completion_ids="12"), "--length-unit words or characters"),
        (item(tokens=3, target_length=0), "`metadata.target_length` is 0, and a whole number from 1 on"),
        (item(tokens=3, target_length=True), "is True"),
        (item(tokens=3, target_length=2.5), "is 2.5"),
        (item(tokens=3, target_length="4"), "is '4'"),
    ],
)
def test_what_is_wrong_in_the_data_is_named(wrong: Item, words: str) -> None:
    result = Lengths().length(wrong)
    assert isinstance(result, Failure) and result.code is ErrorCode.BAD_INPUT and words in result.message


def test_a_buffer_longer_than_all_is_named_with_both_numbers() -> None:
    result = Lengths(longest=10, buffer=20).overlong(item(tokens=3))
    assert isinstance(result, Failure) and result.code is ErrorCode.BAD_INPUT
    assert "overlong_buffer is 20, more than max_length 10" in result.message


def test_the_limits_are_part_of_the_revision() -> None:
    revisions = [
        RulesScorer(lengths=lengths).rewards["length"].revision
        for lengths in (Lengths(), Lengths("words"), Lengths(target=5), Lengths(longest=5), Lengths(buffer=5))
    ]
    assert revisions[0] == "1+unit-tokens" and revisions[2] == "1+unit-tokens-target-5"
    assert len(set(revisions)) == 5


def test_the_flags_set_the_limits() -> None:
    flags = ["--length-unit", "words", "--target-length", "4", "--max-length", "6", "--overlong-buffer", "2"]
    scorer = make_scorer(load_settings(RulesSettings, flags))
    five = item("one two three four five")
    [near], [late] = scorer.score("length", [five]), scorer.score("overlong", [five])
    assert isinstance(near, Score) and isinstance(late, Score)
    assert (near.value, late.value) == (0.75, -0.5)
    ranges = {name: info.range for name, info in scorer.rewards.items()}
    assert ranges["length"] == (0.0, 1.0) and ranges["overlong"] == (-1.0, 0.0)
