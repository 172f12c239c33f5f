"""Text answers: the letter of an option, a number, and the form think-then-answer; what is 0 and what is no score."""

from __future__ import annotations

import pytest

from services.kit.scorer import Failure, Item, Score
from services.rules.answers import answer_of, number, option_letter, read_letter, read_number, think_format
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


@pytest.mark.parametrize("answer", LETTERS)
def test_which_letter_is_read(answer: str) -> None:
    assert read_letter(answer) == LETTERS[answer]


@pytest.mark.parametrize("answer", NUMBERS)
def test_which_number_is_read(answer: str) -> None:
    assert read_number(answer) == NUMBERS[answer]


@pytest.mark.parametrize("completion", ANSWERS)
def test_where_the_answer_is(completion: str) -> None:
    assert answer_of(completion) == ANSWERS[completion]


@pytest.mark.parametrize("completion", FORMS)
def test_the_form_think_then_answer(completion: str) -> None:
    assert think_format(item(completion)) == Score(FORMS[completion])


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
    revisions = {reward.info.name: reward.info.revision for reward in builtin_rewards()}
    assert revisions["number"] == "1+tolerance-1e-06"


@pytest.mark.parametrize("reward", [option_letter, number])
@pytest.mark.parametrize("completion", ["", "   ", "<think>B 42", "I do not know", "<answer></answer>"])
def test_what_the_policy_did_not_say_is_a_zero(reward, completion: str) -> None:
    """The policy was asked: no answer is a wrong one, and the group shall see the difference."""
    target = "B" if reward is option_letter else "42"
    assert reward(item(completion, target)) == Score(0.0, details={"read": None})


@pytest.mark.parametrize("reward", [option_letter, number])
def test_what_the_data_lacks_is_no_score(reward) -> None:
    asked = reward(item("B"))
    assert isinstance(asked, Failure) and asked.code is ErrorCode.NOT_APPLICABLE and "`targets`" in asked.message
    silent = reward(item(None, "B"))
    assert isinstance(silent, Failure) and silent.code is ErrorCode.BAD_INPUT and "`completion`" in silent.message
    wrong = reward(item("B", "two cats"))
    assert isinstance(wrong, Failure) and wrong.code is ErrorCode.BAD_INPUT and "'two cats'" in wrong.message


def test_the_form_needs_a_completion_and_no_target() -> None:
    result = think_format(item(None))
    assert isinstance(result, Failure) and result.code is ErrorCode.BAD_INPUT


@pytest.mark.parametrize(
    "text", [" " * 1_000_000, "answer" + " " * 1_000_000 + "!", "1,111" * 200_000, "-" * 1_000_000]
)
def test_a_long_answer_is_read_in_no_time(text: str) -> None:
    """Patterns that try all ways to split a run would be at it for hours."""
    assert read_letter(text) is None
    read_number(text)
    assert value(think_format(item(text))) == 0.0


def test_the_warm_up_of_every_built_in_reward_comes_back_as_a_score() -> None:
    scorer = RulesScorer()
    warm = scorer.warmup()
    assert [name for name, _ in warm] == list(scorer.rewards)
    assert all(isinstance(scorer.score(name, [each])[0], Score) for name, each in warm)
