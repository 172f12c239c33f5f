"""The three variants, on numbers computed by hand."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ocr.scoring import (
    MAX_TARGETS,
    VARIANTS,
    NoTargetError,
    Variant,
    find_targets,
    quoted_texts,
    score_text,
)

JUNK = "qzxkqzxkqzxkqzxkqzxkqzxkqzxkqz"  # 30 characters

# case, targets, recognised lines, flow_grpo, multi, strict. The distances, where not obvious:
#   reversed: Lev(worldhello, helloworld) = 8 of 10; the best token shares 5 of 10; strict has the run WORLD HELLO, where
#     Lev("WORLD HELLO", "HELLO WORLD") is 8 of 11
#   case: h-e-l-l-o differs in four of five; flow_grpo folds case
#   art in party: Lev(party, art) = 2 of 3
#   two targets, one drawn: the other's best candidate has distance 4 or more of 4 (CAFE, OPEN share no aligned letter
#     but one: Lev(OPEN, CAFE) = 4)
#   v/w: two substitutions of five; folding makes them equal
TABLE = [
    ("exact", ["HELLO"], ["HELLO"], 1.0, 1.0, 1.0),
    ("two tokens in order", ["HELLO WORLD"], ["HELLO", "WORLD"], 1.0, 1.0, 1.0),
    ("target and a junk token", ["HELLO"], ["HELLO", JUNK], 1.0, 1.0, 1.0),
    ("repeated", ["HELLO"], ["HELLO", "HELLO", "HELLO"], 1.0, 1.0, 1.0),
    ("tokens reversed", ["HELLO WORLD"], ["WORLD", "HELLO"], 0.2, 0.5, 1 - 8 / 11),
    ("case differs", ["HELLO"], ["Hello"], 1.0, 0.2, 0.2),
    ("art inside party", ["art"], ["party"], 1.0, 1 / 3, 1 / 3),
    ("one typo", ["strawberry"], ["strawbezry"], 0.9, 0.9, 0.9),
    ("one typo and 30 junk characters", ["strawberry"], ["strawbezry", JUNK], 0.0, 0.9, 0.9),
    ("no text found", ["HELLO"], [], 0.0, 0.0, 0.0),
    ("punctuation missing", ["HELLO!"], ["HELLO"], 1 - 1 / 6, 1.0, 1.0),
    ("two texts, the first drawn", ["OPEN", "CAFE"], ["OPEN"], 1.0, 0.5, 0.5),
    ("v read as w", ["vivid"], ["wiwid"], 0.6, 1.0, 0.6),
    ("Chinese", ["你好世界"], ["你好世界"], 1.0, 1.0, 1.0),
    ("Chinese, one wrong", ["你好世界"], ["你好世畀"], 0.75, 0.75, 0.75),
]


@pytest.mark.parametrize("column", [0, 1, 2], ids=["flow_grpo", "multi", "strict"])
@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_table(row: tuple[str, list[str], list[str], float, float, float], column: int) -> None:
    _, texts, lines, *expected = row
    variant: Variant = ("flow_grpo", "multi", "strict")[column]
    targets = find_targets(variant, "", texts)
    assert score_text(variant, lines, targets).value == pytest.approx(expected[column], abs=1e-12)


def test_flow_grpo_removes_only_spaces_and_folds_case() -> None:
    assert score_text("flow_grpo", ["h e l l o"], ["HEL LO"]).value == 1.0
    # A tab is no space there: it stays and costs one edit of three.
    assert score_text("flow_grpo", ["ab"], ["a\tb"]).value == pytest.approx(2 / 3)


def test_multi_weights_by_length() -> None:
    """r("abcdefgh") = 1 with weight 8, r("xy") = 0 with weight 2: 0.8."""
    assert score_text("multi", ["abcdefgh"], ["abcdefgh", "xy"]).value == pytest.approx(0.8)


def test_multi_runs_of_at_most_three_or_everything() -> None:
    lines = ["aa", "bb", "cc", "dd", "ee"]
    assert score_text("multi", lines, ["bb cc dd"]).value == 1.0
    assert score_text("multi", lines, ["aabbccddee"]).value == 1.0
    # Four of five is no candidate: the nearest, three (aabbcc) or all five, miss two characters of eight.
    assert score_text("multi", lines, ["aabbccdd"]).value == pytest.approx(0.75)


@pytest.mark.parametrize("variant", ["multi", "strict"])
def test_the_engines_split_into_lines_or_words_does_not_matter(variant: Variant) -> None:
    line, words = ["WE ARE OPEN NOW"], ["WE", "ARE", "OPEN", "NOW"]
    assert score_text(variant, line, ["OPEN"]).value == 1.0
    assert score_text(variant, line, ["OPEN", "ARE OPEN"]) == score_text(variant, words, ["OPEN", "ARE OPEN"])


@pytest.mark.parametrize(("read", "target"), [("0pen", "open"), ("l", "1"), ("i", "j"), ("5un", "sun"), ("van", "wan")])
def test_look_alikes_count_as_equal_in_multi_only(read: str, target: str) -> None:
    folded = score_text("multi", [read], [target])
    assert folded.value == 1.0
    assert not folded.exact
    assert score_text("strict", [read], [target]).value < 1.0


def test_strict_compares_with_as_many_words_as_the_target_has() -> None:
    lines = ["BIG SALE", "TODAY"]
    assert score_text("strict", lines, ["SALE TODAY"]).value == 1.0
    # "SAL" of "SALE": a part of a word is worth its edit distance, 1 of 3, not 1.
    assert score_text("strict", lines, ["SAL"]).value == pytest.approx(2 / 3)
    # Fewer words than the target: all of them are compared. Lev("HELLO", "HELLO WORLD") = 6 of 11.
    assert score_text("strict", ["HELLO"], ["HELLO WORLD"]).value == pytest.approx(5 / 11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_case_can_be_set(variant: Variant) -> None:
    assert score_text(variant, ["Hello"], ["HELLO"], "insensitive").value == 1.0
    assert score_text(variant, ["Hello"], ["HELLO"], "sensitive").value == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Ｈｅｌｌｏ", "Hello"),
        ("ﬁne", "fine"),
        ("Cafe\u0301", "Café"),
        ("«Привет», мир!", "Привет мир"),
        ("10 €", "10€"),
    ],
    ids=["full width", "ligature", "combining accent", "Cyrillic", "currency"],
)
def test_multi_normalises_any_script(text: str, read: str) -> None:
    assert score_text("multi", [read], [text]).value == 1.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_exact_and_extra_text(variant: Variant) -> None:
    right = score_text(variant, ["OPEN"], ["OPEN"])
    assert (right.exact, right.extra_text, right.similarities) == (True, 0.0, (1.0,))
    spammed = score_text(variant, ["OPEN", "OPEN"], ["OPEN"])
    assert (spammed.value, spammed.exact, spammed.extra_text) == (1.0, False, 0.5)
    nothing = score_text(variant, [], ["OPEN"])
    assert (nothing.exact, nothing.extra_text) == (False, 0.0)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign "OPEN" and "24 h"', ["OPEN", "24 h"]),
        ("a sign “OPEN” and ‘24 h’", ["OPEN", "24 h"]),
        ("写着「你好」和『世界』的牌子", ["你好", "世界"]),
        ("‘don’t stop’ on the dog’s collar", ["don’t stop"]),
        ("it's a dog's life", []),
        ('a sign "OPEN', []),
        ('"" and " " and "x"', ["x"]),
        ("no quotes", []),
    ],
)
def test_quotes(prompt: str, texts: list[str]) -> None:
    assert quoted_texts(prompt) == texts


def test_explicit_targets_win_over_quotes() -> None:
    assert find_targets("multi", 'a sign "OPEN"', ["SHUT", " "]) == ["SHUT"]
    assert find_targets("flow_grpo", 'a sign "OPEN"', ["SHUT", "NOW"]) == ["SHUT"]


def test_flow_grpo_takes_the_first_straight_quote_as_the_original_does() -> None:
    prompt = 'a “curly” sign and "one", "two"'
    assert find_targets("flow_grpo", prompt, None) == ["one"]
    assert find_targets("multi", prompt, None) == ["curly", "one", "two"]
    assert find_targets("flow_grpo", "only “curly”", None) == ["curly"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("prompt", "targets"), [("plain", None), ('""', None), ('"x"', []), ('"x"', ["", " \t"])])
def test_nothing_to_look_for(variant: Variant, prompt: str, targets: list[str] | None) -> None:
    with pytest.raises(NoTargetError):
        find_targets(variant, prompt, targets)


@pytest.mark.parametrize("variant", ["multi", "strict"])
def test_a_target_of_punctuation_only_is_no_target(variant: Variant) -> None:
    with pytest.raises(NoTargetError, match=r"\?!"):
        score_text(variant, ["x"], ["?!"])
    assert score_text(variant, ["x"], ["?!", "x"]).value == 1.0


def test_too_many_targets_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=rf"{MAX_TARGETS + 1} .* {MAX_TARGETS}"):
        find_targets("multi", "", ["x"] * (MAX_TARGETS + 1))


@pytest.mark.parametrize("mark", ['"', "“", "‘", "「", "‘a’", "’a", "“‘「『"])
def test_hostile_prompts_are_scanned_in_linear_time(mark: str) -> None:
    prompt = "‘" + mark * (60_000 // len(mark))
    started = time.process_time()
    quoted_texts(prompt)
    assert time.process_time() - started < 2.0  # a quadratic scan takes minutes


@pytest.mark.parametrize("variant", VARIANTS)
@given(lines=st.lists(st.text(max_size=12), max_size=5), text=st.text(min_size=1, max_size=12))
def test_any_text_scores_between_0_and_1(variant: Variant, lines: list[str], text: str) -> None:
    try:
        score = score_text(variant, lines, find_targets(variant, "", [text]))
    except NoTargetError:
        return
    assert 0.0 <= score.value <= 1.0
    assert 0.0 <= score.extra_text < 1.0
    assert not score.exact or score.value == 1.0
