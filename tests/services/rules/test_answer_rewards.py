"""Text answers: the letter of an option, a number, and the form think-then-answer; what is 0 and what is no score."""

from __future__ import annotations

import pytest

from services.kit.scorer import Failure, Item, Score
from services.rules.answers import (
    answer,
    answer_of,
    exact_answer,
    loose_answer_of,
    normalized,
    number,
    option_letter,
    read_letter,
    read_number,
)
from services.rules.forms import answer_format, tag_count, think_format
from services.rules.lengths import Lengths
from services.rules.scorer import RulesScorer, builtin_rewards
from wire.schema import ErrorCode

LETTERS = {
    "B": "B",
    " b\n": "B",
    "(B)": "B",
    "(b) two cats": "B",
    "[B]": "B",
    "B.": "B",
    "B. two cats": "B",
    "B) two cats, not A)": "B",
    "B: two": "B",
    "**B**": "B",
    "**B.** two": "B",
    "'B'": "B",
    "Answer: B": "B",
    "answer = b": "B",
    "The answer is B.": "B",
    "The answer is **B**": "B",
    "The correct   option is\n(B)": "B",
    "Option B": "B",
    "Final answer: [b]": "B",
    # a mistake seen elsewhere: the first letter of whatever was written
    "not a, not b, maybe c": None,
    "A dog": None,
    "I think B": None,
    "Bees": None,
    "A, B": None,
    "A or B": None,
    "AB": None,
    "the answer is a dog": None,
    "two": None,
    "2": None,
    "": None,
    "()": None,
    "Б": None,
    "ſ": None,  # which lower-cases to s
}

NUMBERS = {
    "42": 42.0,
    "42.": 42.0,
    "42.0": 42.0,
    "+42": 42.0,
    "-1.5e3": -1500.0,
    "\N{MINUS SIGN}7": -7.0,
    ".5": 0.5,
    "1,234 cats": 1234.0,
    "1,234,567.5": 1234567.5,
    "x = 42": 42.0,
    "There are 42 of them": 42.0,
    "42%": 42.0,
    "$42": 42.0,
    "42cm": 42.0,
    "41 or 42": None,
    "3/4": None,
    "2024-01-02": None,
    "1.2.3": None,
    "1,23": None,
    "1,2345": None,
    "12.34.5": None,
    "B2": None,
    "forty-two": None,
    "1e999": None,
    "": None,
    "\N{ARABIC-INDIC DIGIT FOUR}": None,
}

ANSWERS = {
    "B": "B",
    "  B \n": "B",
    "<answer>B</answer>": "B",
    "<think>A? no</think><answer> B </answer>": "B",
    "<think>A? no</think> B": "B",
    "<think>perhaps <answer>A</answer></think><answer>B</answer>": "B",
    "It is <answer>B</answer>, I think": "B",
    "thinking was opened by the prompt</think>B": "B",
    "<think>a</think><think>b</think>B": "B",
    # none, or more than one
    "": "",
    "<think>B": "",
    "<think>a</think>B<think>": "",
    "<think><answer>B</answer></think>": "",
    "<answer>A</answer><answer>B</answer>": "",
    "<answer>B": "",
    "B</answer>": "",
    "</answer>B<answer>": "",
    "<answer><answer>B</answer></answer>": "",
    "<ANSWER>B</ANSWER>": "<ANSWER>B</ANSWER>",
}

FORMS = {
    "<think>a</think><answer>b</answer>": 1.0,
    "\n<think>\na\n</think>\n\n<answer>\nb\n</answer>\n": 1.0,
    "<think></think><answer>b</answer>": 1.0,
    "<think>a < b > c</think><answer>1 < 2</answer>": 1.0,
    "<think>a</think><answer></answer>": 0.0,
    "<think>a</think><answer> </answer>": 0.0,
    "<think>a</think>so<answer>b</answer>": 0.0,
    "Well. <think>a</think><answer>b</answer>": 0.0,
    "<think>a</think><answer>b</answer> done": 0.0,
    "<answer>b</answer><think>a</think>": 0.0,
    "<think>a<answer>b</answer></think>": 0.0,
    "<think>a</think><think>b</think><answer>c</answer>": 0.0,
    "<think>a</think><answer>b</answer><answer>c</answer>": 0.0,
    "<think><think>a</think></think><answer>b</answer>": 0.0,
    "<think>a<answer>b</answer>": 0.0,
    "a</think><answer>b</answer>": 0.0,
    "<Think>a</Think><Answer>b</Answer>": 0.0,
    "<answer>b</answer>": 0.0,
    "": 0.0,
}


def item(completion: str | None, *targets: str) -> Item:
    return Item("a", "how many?", completion=completion, targets=targets or None)


def value(result: object) -> float:
    assert isinstance(result, Score)
    return result.value


@pytest.mark.parametrize("text", LETTERS)
def test_which_letter_is_read(text: str) -> None:
    assert read_letter(text) == LETTERS[text]


@pytest.mark.parametrize("text", NUMBERS)
def test_which_number_is_read(text: str) -> None:
    assert read_number(text) == NUMBERS[text]


@pytest.mark.parametrize("completion", ANSWERS)
def test_where_the_answer_is(completion: str) -> None:
    assert answer_of(completion) == ANSWERS[completion]


@pytest.mark.parametrize("completion", FORMS)
def test_the_form_think_then_answer(completion: str) -> None:
    assert think_format(item(completion)) == Score(FORMS[completion])


LOOSE_ANSWERS = ANSWERS | {
    # what the tags lack does not hide the answer
    "<answer>B": "B",
    "B</answer>": "B",
    "</answer>B<answer>": "",
    "<think>a lot, then<answer>B</answer>": "B",
    "<think>a lot, then<answer>B": "B",
    "<think>a</think>B<think>": "",
    "<think>a</think><answer>B</answer><think>": "B",
    "<think><answer>B</answer></think>": "",
    "<answer>A<answer>B</answer>": "",
}


@pytest.mark.parametrize("completion", LOOSE_ANSWERS)
def test_where_the_answer_is_when_tags_need_not_be_closed(completion: str) -> None:
    assert loose_answer_of(completion) == LOOSE_ANSWERS[completion]


NORMALIZED = {
    "Red disc": "red disc",
    " red \t disc\n": "red disc",
    '"Red disc."': "red disc",
    "**Red disc**!": "red disc",
    "\u201cred disc\u201d": "red disc",
    "\uff32ed\u3000disc\u3002": "red disc",  # full-width R, a wide blank, an East Asian full stop
    "STRASSE": "strasse",
    "Stra\u00dfe": "strasse",
    "e\u0301te\u0301": "\u00e9t\u00e9",
    # what counts
    "the red disc": "the red disc",
    "red-disc": "red-disc",
    "-5": "-5",
    ".5": ".5",
    "5%": "5%",
    "m\u00b2": "m\u00b2",
    "[1, 2)": "[1, 2)",
    "C++": "c++",
    "\N{ARABIC-INDIC DIGIT FOUR}": "\N{ARABIC-INDIC DIGIT FOUR}",
    # nothing
    "": None,
    " . ": None,
    "\"'**'\"": None,
}


@pytest.mark.parametrize("text", NORMALIZED)
def test_what_does_not_count_when_texts_are_compared(text: str) -> None:
    assert normalized(text) == NORMALIZED[text]


@pytest.mark.parametrize(
    ("completion", "targets", "right"),
    [
        ("Red disc.", ("red disc",), 1.0),
        ("<think>red disc</think><answer> RED  DISC </answer>", ("red disc",), 1.0),
        ("a disc", ("red disc", "a disc"), 1.0),
        ("red disc", ("disc",), 0.0),
        ("disc", ("red disc",), 0.0),
        ("red, disc", ("red disc",), 0.0),
        ("<answer>red disc", ("red disc",), 0.0),
    ],
)
def test_an_exact_answer_is_a_target_word_for_word(completion: str, targets: tuple[str, ...], right: float) -> None:
    assert value(exact_answer(item(completion, *targets))) == right


@pytest.mark.parametrize(
    ("completion", "targets", "rule", "right"),
    [
        ("The answer is (B).", ("B",), "letter", 1.0),
        ("b", ("(B)",), "letter", 1.0),
        ("not a, not b, maybe c", ("C",), "letter", 0.0),
        ("A dog", ("A",), "letter", 0.0),
        ("there are 42 of them", ("42",), "number", 1.0),
        ("42.0", ("42",), "number", 1.0),
        ("41 or 42", ("42",), "number", 0.0),
        ("\N{ARABIC-INDIC DIGIT FOUR}", ("4",), "number", 0.0),
        ("\N{MINUS SIGN}7", ("-7",), "number", 1.0),
        ("Red disc.", ("red disc",), "text", 1.0),
        ("a red disc", ("red disc",), "text", 0.0),
        ("42 cats", ("42 cats",), "text", 1.0),
        ("42", ("42 cats",), "text", 0.0),
        ("3/4", ("3/4",), "text", 1.0),
        ("B. two cats", ("B. two cats",), "text", 1.0),
        ("1e999", ("1e999",), "text", 1.0),
        # each target by its own rule
        ("two", ("2", "two"), "text", 1.0),
        ("2 of them", ("two", "2"), "number", 1.0),
        # the form is another reward's
        ("<answer>B", ("B",), "letter", 1.0),
        ("<think>A or B<answer>red disc", ("red disc",), "text", 1.0),
        ("<think>red disc", ("red disc",), "text", 0.0),
    ],
)
def test_the_rule_of_an_answer_is_the_targets(
    completion: str, targets: tuple[str, ...], rule: str, right: float
) -> None:
    result = answer(item(completion, *targets))
    assert value(result) == right and result.details["rule"] == rule


def test_wrong_scores_of_published_rewards_are_not_repeated() -> None:
    """Seen elsewhere: B, B, D, D all right scored 0, 0, 1, 1; a right number 0; a right text .5; no answer at all .5."""
    scorer = RulesScorer()
    right = [item(letter, letter) for letter in "BBDD"]
    for reward in ("answer", "option_letter"):
        assert [value(each) for each in scorer.score(reward, right)] == [1.0] * 4
    assert value(answer(item("42", "42"))) == value(number(item("42", "42"))) == 1.0
    text = "the cat sat on the mat"
    assert value(answer(item(text, text))) == value(exact_answer(item(text, text))) == 1.0
    dodging = "not a, not b, maybe c"
    assert [value(answer(item(dodging, letter))) for letter in "ABC"] == [0.0] * 3


def test_details_of_a_long_answer_are_cut() -> None:
    result = exact_answer(item("x" * 1_000_000, "y"))
    assert value(result) == 0.0 and len(str(result.details["read"])) == 201


ANSWER_FORMS = FORMS | {
    "<answer>b</answer>": 1.0,
    "\n<answer>\nb\n</answer>\n": 1.0,
    "<answer> </answer>": 0.0,
    "so <answer>b</answer>": 0.0,
    "<answer>b": 0.0,
    "<answer>a</answer><answer>b</answer>": 0.0,
    "<answer><think>a</think>b</answer>": 0.0,
    "<answer>a</think>b</answer>": 0.0,
    "b": 0.0,
}


@pytest.mark.parametrize("completion", ANSWER_FORMS)
def test_the_form_of_an_answer_in_which_thinking_is_not_asked_for(completion: str) -> None:
    assert answer_format(item(completion)) == Score(ANSWER_FORMS[completion])


@pytest.mark.parametrize(
    ("completion", "score", "there"),
    [
        ("<think>a</think><answer>b</answer>", 1.0, "think /think answer /answer"),
        ("</answer><answer></think><think>", 1.0, "think /think answer /answer"),
        ("<think>a</think>b", 0.5, "think /think"),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.5, "think /think"),
        ("<answer>b", 0.25, "answer"),
        ("b", 0.0, ""),
        ("", 0.0, ""),
    ],
)
def test_each_tag_that_is_there_once_is_a_quarter(completion: str, score: float, there: str) -> None:
    parts = {tag: float(tag in there.split()) for tag in ("think", "/think", "answer", "/answer")}
    assert tag_count(item(completion)) == Score(score, parts)


def test_a_letter_counts_when_it_is_that_of_a_target() -> None:
    assert option_letter(item("<think>A?</think><answer>(b)</answer>", "B")) == Score(1.0, details={"read": "B"})
    assert option_letter(item("B", "A")) == Score(0.0, details={"read": "B"})
    assert value(option_letter(item("D. both", "A", "(d)"))) == 1.0, "any of several targets is right"


def test_every_completion_of_a_batch_is_judged_by_itself() -> None:
    """A mistake seen elsewhere: the completions of a batch compared as one text, so that right answers were wrong."""
    items = [item(letter, "B") for letter in "BBDD"]
    assert [value(each) for each in RulesScorer().score("option_letter", items)] == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "target", "right"),
    [
        ("42", "42", 1.0),
        ("42.0", "42", 1.0),
        ("1,234", "1234", 1.0),
        ("4.2e1", "42", 1.0),
        ("0.3333333", "0.33333333", 1.0),
        ("1000001", "1000000.5", 1.0),
        ("0.0000005", "0", 1.0),
        ("0.33333", "0.33334", 0.0),
        ("42.1", "42", 0.0),
        ("-42", "42", 0.0),
        ("41 or 42", "42", 0.0),
        ("the answer", "42", 0.0),
    ],
)
def test_numbers_are_equal_within_the_tolerance(completion: str, target: str, right: float) -> None:
    assert value(number(item(completion, target))) == right


def test_the_tolerance_is_part_of_the_revision() -> None:
    revisions = {reward.info.name: reward.info.revision for reward in builtin_rewards(Lengths())}
    assert revisions["number"] == "1+tolerance-1e-06"


TARGETS = {option_letter: "B", number: "42", exact_answer: "two cats", answer: "two cats"}


@pytest.mark.parametrize("reward", TARGETS)
@pytest.mark.parametrize("completion", ["", "   ", "<think>B 42 two cats", "I do not know", "<answer></answer>"])
def test_what_the_policy_did_not_say_is_a_zero(reward, completion: str) -> None:
    """The policy was asked: no answer is a wrong one, and the group shall see the difference."""
    result = reward(item(completion, TARGETS[reward]))
    assert value(result) == 0.0 and result.details["read"] in (None, "i do not know")


@pytest.mark.parametrize("reward", TARGETS)
def test_what_the_data_lacks_is_no_score(reward) -> None:
    asked = reward(item("B"))
    assert isinstance(asked, Failure) and asked.code is ErrorCode.NOT_APPLICABLE and "`targets`" in asked.message
    silent = reward(item(None, "B"))
    assert isinstance(silent, Failure) and silent.code is ErrorCode.BAD_INPUT and "`completion`" in silent.message
    unreadable = "?" if reward in (exact_answer, answer) else "two cats"
    wrong = reward(item("B", unreadable))
    assert isinstance(wrong, Failure) and wrong.code is ErrorCode.BAD_INPUT and repr(unreadable) in wrong.message


def test_the_form_needs_a_completion_and_no_target() -> None:
    for reward in (think_format, answer_format, tag_count):
        result = reward(item(None))
        assert isinstance(result, Failure) and result.code is ErrorCode.BAD_INPUT


@pytest.mark.parametrize(
    "text", [" " * 1_000_000, "answer" + " " * 1_000_000 + "!", "1,111" * 200_000, "-" * 1_000_000]
)
def test_a_long_answer_is_read_in_no_time(text: str) -> None:
    """Patterns that try all ways to split a run would be at it for hours."""
    assert read_letter(text) is None
    read_number(text)
    assert value(think_format(item(text))) == value(answer_format(item(text))) == 0.0
    assert value(answer(item(text, "B", "42", "two cats"))) == value(exact_answer(item(text, "two cats"))) == 0.0


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<answer>", "</answer>", "<", "<think><answer>", "\u0130", "`\n"]
)
def test_a_completion_of_a_megabyte_of_tags_is_read_in_no_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    assert (
        value(answer(item(text, "B")))
        == value(exact_answer(item(text, "B")))
        == value(answer_format(item(text)))
        == 0.0
    )
    assert value(tag_count(item(text))) == 0.0


def test_the_warm_up_of_every_built_in_reward_comes_back_as_a_score() -> None:
    scorer = RulesScorer()
    warm = scorer.warmup()
    assert [name for name, _ in warm] == list(scorer.rewards)
    assert all(isinstance(scorer.score(name, [each])[0], Score) for name, each in warm)
