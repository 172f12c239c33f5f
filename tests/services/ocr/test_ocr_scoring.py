"""The three variants, on numbers computed by hand."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ocr.scoring import (
    MAX_TARGET_CHARS,
    MAX_TARGETS,
    VARIANTS,
    NoTargetError,
    Variant,
    find_targets,
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


@pytest.mark.parametrize("variant", ["multi", "strict"])
@pytest.mark.parametrize("beside", ["ANOTHER LINE", "x", "KEEP"])
def test_a_sentence_of_one_word_a_line_is_read_beside_another_line(variant: Variant, beside: str) -> None:
    words = ["KEEP", "CALM", "AND", "CARRY", "ON"]
    for lines in ([*words, beside], [beside, *words]):
        assert score_text(variant, lines, ["KEEP CALM AND CARRY ON"]).value == 1.0


def test_multi_takes_runs_of_any_number_of_words() -> None:
    lines = ["aa", "bb", "cc", "dd", "ee"]
    assert score_text("multi", lines, ["bb cc dd"]).value == 1.0
    assert score_text("multi", lines, ["aabbccdd"]).value == 1.0
    assert score_text("multi", ["S", "A", "L", "E", "now"], ["SALE"]).value == 1.0
    # A wrong letter in a long sentence costs that letter, 1 of 22; a word of it missing costs that word, 4 of 22.
    sentence, read = "THE QUICK BROWN FOX JUMPS OVER", ["junk", "THE QUICK", "BROWN", "FOX", "JUMPZ", "OVER", "junk"]
    assert score_text("multi", read, [sentence]).value == pytest.approx(1 - 1 / 25)
    assert score_text("multi", [*read[:5], "junk"], [sentence]).value == pytest.approx(1 - 5 / 25)


@pytest.mark.parametrize("target", ["欢迎光临", "ようこそ", "サービス"])
def test_a_script_without_spaces_is_read_beside_other_text(target: str) -> None:
    assert score_text("multi", [f"本店{target}请进"], [target]).value == 1.0
    assert score_text("multi", list(f"本店{target}请进"), [target]).value == 1.0


def test_a_long_target_on_a_long_reading_is_bounded_work() -> None:
    words = ["abcd"] * 1000
    started = time.process_time()
    assert score_text("multi", words, ["x" * MAX_TARGET_CHARS]).value == 0.0
    assert time.process_time() - started < 20.0  # all its runs one by one take minutes
    with pytest.raises(ValueError, match=rf"{MAX_TARGET_CHARS + 1} characters; the limit is {MAX_TARGET_CHARS}"):
        find_targets("multi", "", ["x", "x" * MAX_TARGET_CHARS])


@pytest.mark.parametrize("variant", ["multi", "strict"])
def test_the_engines_split_into_lines_or_words_does_not_matter(variant: Variant) -> None:
    line, words = ["WE ARE OPEN NOW"], ["WE", "ARE", "OPEN", "NOW"]
    assert score_text(variant, line, ["OPEN"]).value == 1.0
    assert score_text(variant, line, ["OPEN", "ARE OPEN"]) == score_text(variant, words, ["OPEN", "ARE OPEN"])


LOOK_ALIKES = [("0pen", "open"), ("l", "1"), ("i", "j"), ("5un", "sun"), ("van", "wan"), ("h0tel", "hotel")]
LOOK_ALIKES += [(read.upper(), target.upper()) for read, target in LOOK_ALIKES]
LOOK_ALIKES += [("B1LL", "BILL"), ("lce", "Ice"), ("H0tel 5UN", "Hotel SUN"), ("hotel 24", "hote1 24")]
LOOK_ALIKES += [("EΛΛA\u25b3A ΨΩMI", "ΕΛΛΑΔΑ ΨΩΜΙ"), ("Kαv MOPE", "Καν ΜΟΡΕ"), ("POCTOB", "РОСТОВ"), ("caxap", "сахар")]


@pytest.mark.parametrize(("read", "target"), LOOK_ALIKES)
def test_look_alikes_count_as_equal_in_multi_only(read: str, target: str) -> None:
    folded = score_text("multi", [read], [target])
    assert folded.value == 1.0
    assert not folded.exact
    assert score_text("strict", [read], [target]).value < 1.0


@pytest.mark.parametrize(("read", "target"), [("HELLo", "HELLO"), ("Sun", "sun"), ("VAN", "van")])
def test_look_alikes_keep_their_case(read: str, target: str) -> None:
    """0 is like o and like O; that does not make o like O."""
    assert score_text("multi", [read], [target]).value < 1.0


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
        ("I ❤\ufe0f NY", "I ❤ NY"),
    ],
    ids=["full width", "ligature", "combining accent", "Cyrillic", "currency", "variation selector"],
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


def test_explicit_targets_win_over_quotes() -> None:
    assert find_targets("multi", 'a sign "OPEN"', ["SHUT", " "]) == ["SHUT"]
    assert find_targets("flow_grpo", 'a sign "OPEN"', ["SHUT", "NOW"]) == ["SHUT"]


@pytest.mark.parametrize(
    ("target", "read", "value"),
    [
        ("ΚΑΛΗΜΕΡΑ", "KAΛHMEPA", 1.0),  # as the model writes it: but for the lambda in Latin letters
        ("Καλημερα", "Kaλημερα", 7 / 8),  # a small alpha is drawn otherwise
        ("ΚΑΛΗΜΕΡΑ", "καλημερα", 1.0),
        ("ΟΜΟΝΟΙΑ", "OMONOIA", 1.0),
        ("СОСНА", "COCHA", 1.0),
        ("ΑΘΗΝΑ", "AOHNA", 0.8),
        ("KATE", "ΚΑΤΕ", 0.0),  # Latin: flow_grpo's own rule
        ("KATE", "kate", 1.0),
    ],
)
def test_flow_grpo_takes_letters_that_are_drawn_as_latin_ones_for_them(target: str, read: str, value: float) -> None:
    assert score_text("flow_grpo", [read], [target]).value == pytest.approx(value)


def test_flow_grpo_takes_the_first_straight_quote_as_the_original_does() -> None:
    prompt = 'a “curly” sign and "one", "two"'
    assert find_targets("flow_grpo", prompt, None) == ["one"]
    assert find_targets("multi", prompt, None) == ["curly", "one", "two"]
    assert find_targets("flow_grpo", "only “curly”", None) == ["curly"]
    assert find_targets("flow_grpo", "only 'single', 'twice'", None) == ["single"]
    assert find_targets("flow_grpo", '"" and "x"', None) == ["x"]
    # Cut at the first two marks, whatever they are: a quote that is not closed reaches to the end.
    assert find_targets("flow_grpo", 'a sign "OPEN', None) == ["OPEN"]
    assert find_targets("flow_grpo", 'a “b "c" d” e', None) == ["c"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_target_read_in_another_plausible_order_is_read(variant: Variant) -> None:
    rows, columns = ["FRESH", "OPEN", "BREAD", "DAILY"], ["FRESH", "BREAD", "OPEN", "DAILY"]
    assert score_text(variant, rows, ["FRESH BREAD"]).value < 1.0
    assert score_text(variant, rows, ["FRESH BREAD"], other_orders=[columns]).value == 1.0


# case, prompt, recognised lines, flow_grpo's score, that of DeepGen-RL's newer scorer; None: no target.
REPLACED = [
    ("plain", 'a sign "OPEN"', ["OPEN"], 1.0, 1.0),
    ("accents read right", 'a sign "Café"', ["Café"], 1.0, 1.0),
    ("an accent read as another", 'a sign "Café"', ["Cafè"], 0.75, 1.0),
    ("an accent lost", 'a sign "Café"', ["Cafe"], 0.75, 2 / 3),
    ("accents in capitals", 'a sign "CRÈME BRÛLÉE"', ["crème brûlée"], 1.0, 0.0),
    ("case", 'a sign "Open"', ["OPEN"], 1.0, 0.25),
    ("punctuation", 'a sign "Hello, world!"', ["Hello world"], 10 / 12, 1.0),
    ("inside a word", 'a sign "art"', ["party"], 1.0, 1 / 3),
    ("two texts, the first drawn", '"OPEN" and "SHUT"', ["OPEN"], 1.0, 0.5),
    ("four words", '"KEEP CALM AND CARRY ON"', ["KEEP", "CALM", "AND", "CARRY", "ON"], 1.0, 1.0),
    ("four words beside a line", '"KEEP CALM AND ON"', ["KEEP", "CALM", "AND", "ON", "x"], 1.0, 12 / 13),
    ("look-alikes", 'a sign "sun"', ["5un"], 2 / 3, 1.0),
    ("look-alikes in capitals", 'a sign "HOTEL"', ["H0TEL"], 0.8, 0.8),
    ("curly and straight", 'a “curly” and "OPEN"', ["OPEN"], 1.0, 1.0),
    ("Chinese", 'a sign "你好"', ["你好"], 1.0, None),
    ("a quote that is not closed", 'a sign "OPEN', ["OPEN"], 1.0, None),
]


@pytest.mark.parametrize("row", REPLACED, ids=[row[0] for row in REPLACED])
def test_the_replaced_scorers_give_these_scores(row: tuple[str, str, list[str], float, float | None]) -> None:
    _, prompt, lines, flow_grpo, deepgen_new = row
    assert score_text("flow_grpo", lines, find_targets("flow_grpo", prompt, None)).value == pytest.approx(flow_grpo)
    if deepgen_new is None:
        with pytest.raises(NoTargetError):
            score_text("deepgen_new", lines, find_targets("deepgen_new", prompt, None))
    else:
        score = score_text("deepgen_new", lines, find_targets("deepgen_new", prompt, None))
        assert score.value == pytest.approx(deepgen_new)


def test_flow_grpo_measures_a_wrong_target_in_reading_order() -> None:
    rows, columns = ["FRESH", "OPEN", "BREAT"], ["FRESH", "BREAT", "OPEN"]
    alone = score_text("flow_grpo", rows, ["FRESH BREAD"]).value
    assert score_text("flow_grpo", rows, ["FRESH BREAD"], other_orders=[columns]).value == alone


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_characters_that_stand_for_many_count_as_many(variant: Variant) -> None:
    """U+FDFA is one character and eighteen under NFKC."""
    for prompt, targets in (("", ["\ufdfa" * 300]), ('"' + "\ufdfa" * 300 + '"', None)):
        with pytest.raises(ValueError, match=f"have 5400 characters; the limit is {MAX_TARGET_CHARS}"):
            find_targets(variant, prompt, targets)
    assert find_targets(variant, "", ["\ufdfa" * 200]) == ["\ufdfa" * 200]


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
