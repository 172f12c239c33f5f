"""Properties of the scoring variants on random texts, against a second, plain Levenshtein distance."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ocr.scoring import NoTargetError, score_text

# Scripts, a combining accent, right-to-left letters, full-width digits, an emoji, white space of two kinds.
ALPHABET = "aAbB01 lOé\u0301ßשלمر中文１２ｆ🙂-!\u3000\t"
TEXT = st.text(ALPHABET, max_size=12)
LINES = st.lists(TEXT, max_size=4)


def distance(a, b):
    """Levenshtein by the textbook recurrence."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (left != right))
    return row[-1]


def original_flow_grpo(read, target):
    """The published rule: no spaces, lower case, a substring is right, the distance is capped at the length."""
    read, target = read.replace(" ", "").lower(), target.replace(" ", "").lower()
    away = 0 if target in read else min(distance(read, target), len(target))
    return 1 - away / len(target)


@settings(max_examples=400, deadline=None)
@given(LINES, TEXT.filter(lambda text: text.replace(" ", "")))
def test_flow_grpo_equals_the_original_rule(lines, target):
    got = score_text("flow_grpo", lines, [target]).value
    assert got == pytest.approx(original_flow_grpo("".join(lines), target), abs=1e-12)


def original_deepgen_new(lines, targets):
    """DeepGen-RL's newer rule: ASCII letters and digits, runs of up to three lines or all, look-alikes of small letters."""

    def kept(text):
        return "".join(re.findall("[A-Za-z0-9]", text))

    def folded(text):
        return text.replace("0", "o").replace("5", "s").replace("v", "w").translate(dict.fromkeys(map(ord, "1ij"), "l"))

    tokens = [kept(line) for line in lines if kept(line)]
    runs = ["".join(tokens[a:b]) for a in range(len(tokens)) for b in range(a + 1, a + 4)] + ["".join(tokens)]
    total = weight = 0
    for target in filter(None, map(kept, targets)):
        away = min(min(distance(run, target), distance(folded(run), folded(target))) for run in runs)
        total += len(target) - min(away, len(target))
        weight += len(target)
    return total / weight if weight else None


@settings(max_examples=300, deadline=None)
@given(LINES, st.lists(TEXT, min_size=1, max_size=3))
def test_deepgen_new_equals_the_original_rule(lines, targets):
    expected = original_deepgen_new(lines, targets)
    if expected is None:
        with pytest.raises(NoTargetError):
            score_text("deepgen_new", lines, targets)
    else:
        assert score_text("deepgen_new", lines, targets).value == pytest.approx(expected, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["flow_grpo", "multi", "strict", "deepgen_new"]), LINES, st.lists(TEXT, min_size=1, max_size=3))
def test_scores_are_between_0_and_1_and_a_mean_of_the_targets(variant, lines, targets):
    try:
        score = score_text(variant, lines, targets)
    except NoTargetError:
        return
    assert all(0 <= part <= 1 for part in (score.value, *score.similarities))
    assert 0 <= score.extra_text <= 1
    low, high = min(score.similarities), max(score.similarities)
    assert low - 1e-12 <= score.value <= high + 1e-12, "a weighted mean"
    if score.exact:
        assert score.value == 1


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["flow_grpo", "multi", "strict"]), TEXT)
def test_reading_the_target_itself_is_exactly_1(variant, target):
    try:
        score = score_text(variant, [target], [target])
    except NoTargetError:
        return
    assert (score.value, score.exact, score.extra_text) == (1.0, True, 0.0)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["flow_grpo", "multi", "strict"]), st.text("abcdefgh", min_size=2, max_size=12), st.data())
def test_each_further_wrong_letter_costs(variant, target, data):
    order = data.draw(st.permutations(range(len(target))))
    read, last = list(target), 1.0
    for place in order:
        read[place] = "X"  # in no alphabet of the targets, and no look-alike of one
        value = score_text(variant, ["".join(read)], [target]).value
        assert value < last
        last = value
    assert last == 0.0
