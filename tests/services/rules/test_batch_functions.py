"""Reward functions of whole batches, as trainers of texts write them: what they are given, and what becomes of their lists."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from machine.own import OwnError
from services.kit.functions.batches import BatchReward
from services.kit.functions.file import load_functions
from services.kit.scorer import Failure, Item, Score
from services.rules.scorer import MAX_BATCH, WHOLE_BATCH, RulesScorer
from wire.schema import ErrorCode, ScorerInfo

LAB = '''
"""As NanoVLM-Lab's users write them."""
import re


def extract(text):
    found = re.search(r"<answer>(.*?)</answer>", text)
    return found.group(1).strip() if found else None


def accuracy_reward(prompts, completions, completion_ids, answer, **kwargs):
    return [None if a is None else float(extract(c) == a) for c, a in zip(completions, answer)]


def format_reward(prompts, completions, completion_ids, **columns):
    return [1.0 if "<answer>" in c else 0.0 for c in completions]


def short_reward(completions, completion_ids, **kwargs):
    return [-len(ids) for ids in completion_ids]
'''
TRL = '''
"""As TRL's users write them."""

def reward_len(completions, **kwargs):
    return [float(len(c)) for c in completions]


def solution_reward(completions, solution, level=None):
    return [float(c == s) for c, s in zip(completions, solution)]


def messages_reward(prompts, completions, **kwargs):
    return [float(c[0]["role"] == "assistant" and c[0]["content"] == p[-1]["content"]) for p, c in zip(prompts, completions)]
'''


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_file(text: str, name: str = "reward_functions.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def said(*completions: str | None, targets: tuple[str, ...] | None = None, **metadata: object) -> list[Item]:
    return [
        Item(str(n), "how many?", completion=text, targets=targets, metadata=dict(metadata))  # type: ignore[arg-type]
        for n, text in enumerate(completions)
    ]


def batched(
    function: Callable[..., object], low: float | None = None, high: float | None = None, **more: bool
) -> BatchReward:
    grouped = more.pop("grouped", False)
    return BatchReward(ScorerInfo(name="mine", revision="1", range=(low, high), grouped=grouped), function, **more)


def test_a_file_of_the_lab_runs_unchanged(write: Callable[..., Path]) -> None:
    path = write(LAB)
    scorer = RulesScorer([f"{path}:accuracy_reward,format_reward,short_reward"])
    items = said("<answer>4</answer>", "<answer>5</answer>", "4", targets=("4",), completion_ids=[1, 2, 3])
    assert scorer.score("accuracy_reward", items) == [Score(1.0), Score(0.0), Score(0.0)]
    assert scorer.score("format_reward", items) == [Score(1.0), Score(1.0), Score(0.0)]
    assert scorer.score("short_reward", items) == [Score(-3.0)] * 3


def test_files_of_trl_run_unchanged(write: Callable[..., Path]) -> None:
    path = write(TRL)
    scorer = RulesScorer([f"{path}:reward_len,solution_reward"])
    items = said("ab", "abc", solution="ab", level=3)
    assert scorer.score("reward_len", items) == [Score(2.0), Score(3.0)]
    assert scorer.score("solution_reward", items) == [Score(1.0), Score(0.0)]
    assert scorer.score("solution_reward", said("ab", targets=("ab",))) == [Score(1.0)], (
        "the target under its other name"
    )
    talking = RulesScorer([f"{path}:messages_reward"], conversational=True)
    assert talking.score("messages_reward", said("how many?", "two")) == [Score(1.0), Score(0.0)]
    revisions = {
        each.rewards["messages_reward"].revision for each in (talking, RulesScorer([f"{path}:messages_reward"]))
    }
    assert len(revisions) == 2


def test_what_a_function_is_given(write: Callable[..., Path]) -> None:
    seen: dict[str, object] = {}

    def look(prompts, completions, completion_ids, **columns):
        seen.update(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
        return [0.0] * len(completions)

    picture = Image.new("RGB", (2, 2))
    items = [
        Item(
            "a", "p", completion="x", targets=("B",), metadata={"level": 3, "prompts": "hidden", "completion_ids": [7]}
        ),
        Item("b", "q", completion="y", targets=("B", "C"), metadata={"tag": "t"}, source_images=(picture, picture)),
        Item("c", "r", completion="z"),
    ]
    assert batched(look).score(items) == [Score(0.0)] * 3
    assert seen == {
        "prompts": ["p", "q", "r"],
        "completions": ["x", "y", "z"],
        "completion_ids": [[7], None, None],
        "level": [3, None, None],
        "tag": [None, "t", None],
        "answer": ["B", ["B", "C"], None],
        "images": [[], [picture, picture], []],
        "image": [None, picture, None],
    }


def test_a_column_of_the_data_wins_over_the_targets() -> None:
    def answers(completions, answer):
        return [float(answer[0] == "of the data")]

    assert batched(answers).score(said("x", targets=("of the targets",), answer="of the data")) == [Score(1.0)]


def test_one_call_for_all_completions() -> None:
    sizes = []

    def count(completions, **columns):
        sizes.append(len(completions))
        return [1] * len(completions)

    assert batched(count).score(said(*"abc", None, "d")) == [
        *[Score(1.0)] * 3,
        Failure(ErrorCode.BAD_INPUT, "mine judges completions, and the item has none"),
        Score(1.0),
    ]
    assert sizes == [4]
    assert batched(count).score(said(None))[0] == Failure(
        ErrorCode.BAD_INPUT, "mine judges completions, and the item has none"
    )
    assert sizes == [4]


@pytest.mark.parametrize(
    "outcome", [[1.0, 0.5], (1, 0.5), np.array([1, 0.5]), torch.tensor([1, 0.5]), [np.float32(1), torch.tensor(0.5)]]
)
def test_lists_arrays_and_tensors_are_rewards(outcome: object) -> None:
    assert batched(lambda completions: outcome).score(said("a", "b")) == [Score(1.0), Score(0.5)]


def test_iterators_and_scores_are_rewards() -> None:
    assert batched(lambda completions: map(len, completions)).score(said("a", "bb")) == [Score(1.0), Score(2.0)]
    parted = Score(0.5, {"form": 1.0}, {"seen": "a"})
    assert batched(lambda completions: [parted]).score(said("a")) == [parted]


def test_none_does_not_apply_and_is_no_failure() -> None:
    results = batched(lambda completions: [1.0, None]).score(said("a", "b"))
    assert results == [Score(1.0), Failure(ErrorCode.NOT_APPLICABLE, "mine does not apply to this item")]


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        (math.nan, ErrorCode.NON_FINITE, "score is nan"),
        (math.inf, ErrorCode.NON_FINITE, "score is inf"),
        (np.float64("nan"), ErrorCode.NON_FINITE, "score is nan"),
        (torch.tensor(math.nan), ErrorCode.NON_FINITE, "score is nan"),
        ("1.0", ErrorCode.INTERNAL, "returned a str"),
        ([1.0], ErrorCode.INTERNAL, "returned a list"),
        (1 + 2j, ErrorCode.INTERNAL, "returned a complex"),
        (10**400, ErrorCode.INTERNAL, "OverflowError"),
        (2.0, ErrorCode.INTERNAL, "returned 2.0, outside its range 0.0 to 1.0"),
    ],
)
def test_what_is_no_number_fails_its_own_item_alone(value: object, code: ErrorCode, words: str) -> None:
    good, bad = batched(lambda completions: [1.0, value], 0.0, 1.0).score(said("a", "b"))
    assert good == Score(1.0)
    assert isinstance(bad, Failure) and bad.code is code and words in bad.message and "mine" in bad.message


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ([1.0], "mine returned 1 rewards for 2 completions"),
        ([1.0] * 3, "mine returned 3 rewards for 2 completions"),
        ([], "mine returned 0 rewards for 2 completions"),
        (1.0, "mine returned a float for 2 completions; a list with a number or None for each is needed"),
        (None, "mine returned a NoneType for 2 completions"),
        ("12", "mine returned a str for 2 completions"),
        ({"a": 1, "b": 2}, "mine returned a dict for 2 completions"),
        (np.float32(1), "mine returned a float32 for 2 completions"),
    ],
)
def test_a_list_of_another_length_belongs_to_nobody(outcome: object, words: str) -> None:
    """Whatever the numbers are, which completion each belongs to is not known."""
    for result in batched(lambda completions: outcome).score(said("a", "b")):
        assert isinstance(result, Failure) and result.code is ErrorCode.INTERNAL and words in result.message


def test_an_exception_fails_the_guilty_one_alone() -> None:
    def picky(completions, **columns):
        return [1.0 / len(text) for text in completions]

    results = batched(picky).score(said("a", "", "bb"))
    assert results[0] == Score(1.0) and results[2] == Score(0.5)
    assert results[1] == Failure(ErrorCode.INTERNAL, "mine raised ZeroDivisionError: float division by zero")


def test_a_group_that_raises_fails_whole_and_is_called_once() -> None:
    calls = []

    def compare(completions, **columns):
        calls.append(len(completions))
        raise ValueError("no winner")

    results = batched(compare, grouped=True).score(said("a", "b"))
    assert results == [Failure(ErrorCode.INTERNAL, "mine raised ValueError: no winner")] * 2 and calls == [2]


def test_a_column_that_is_not_there_is_named() -> None:
    def needs(completions, solution):
        return [1.0]

    def looks_up(completions, **columns):
        return [float(s == "a") for s in columns["solution"]]

    for function in (needs, looks_up):
        [result] = batched(function).score(said("a", level=3))
        assert isinstance(result, Failure) and result.code is ErrorCode.BAD_INPUT
        assert result.message == "mine takes the column 'solution', and `metadata` has no such; its columns: level"


def test_without_ids_a_function_of_ids_fails_and_gives_no_number() -> None:
    [result] = batched(lambda completions, completion_ids: [float(len(i)) for i in completion_ids]).score(said("a"))
    assert isinstance(result, Failure) and "raised TypeError" in result.message


def test_only_listed_functions_become_rewards_and_the_others_are_named(write: Callable[..., Path], caplog) -> None:
    path = write(LAB)
    spec = f"{path}:format_reward"
    file = load_functions(spec)
    assert [each.info.name for each in file.rewards] == ["format_reward"]
    assert file.not_served == ["accuracy_reward", "short_reward"], "and no helper"
    scorer = RulesScorer([spec])
    assert scorer.about == {"not_served": {spec: ["accuracy_reward", "short_reward"]}}
    with caplog.at_level(logging.WARNING):
        scorer.load()
    assert caplog.records[-1].names == "accuracy_reward, short_reward"  # type: ignore[attr-defined]
    assert RulesScorer([f"{path}:accuracy_reward,format_reward,short_reward"]).about == {} == RulesScorer().about


def test_a_file_without_a_list_says_which_there_are(write: Callable[..., Path]) -> None:
    path = write(LAB)
    with pytest.raises(OwnError) as error:
        load_functions(str(path))
    assert f"{path}:accuracy_reward,format_reward,short_reward" in str(error.value)
    assert "which of them are rewards is for you to say" in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("async def f(completions, **kwargs):\n    return [1]\n", "is async or a generator"),
        ("def f(completions, **kwargs):\n    yield 1\n", "is async or a generator"),
        ("def f(completions, trainer_state, **kwargs):\n    return [1]\n", "it needs trainer_state"),
        ("def f(prompts, /, completions):\n    return [1]\n", "its parameter prompts takes no name"),
        (
            "from services.rules import reward\n@reward(grouped=True)\ndef f(item):\n    return 1\n",
            "f is marked grouped, and only a function of `completions` sees a group",
        ),
        ("def f(**kwargs):\n    return [1]\n", "def f(completions, **columns) for the texts of a batch"),
    ],
)
def test_a_function_that_cannot_be_served_is_refused_at_the_start(
    write: Callable[..., Path], text: str, words: str
) -> None:
    path = write(text)
    with pytest.raises(OwnError) as error:
        load_functions(f"{path}:f")
    assert words in str(error.value) and str(path) in str(error.value)


def test_a_parameter_of_a_trainer_with_a_default_does_not_matter(write: Callable[..., Path]) -> None:
    path = write("def f(completions, trainer_state=None, **kwargs):\n    return [float(trainer_state is None)]\n")
    assert RulesScorer([f"{path}:f"]).score("f", said("a")) == [Score(1.0)]


def test_a_mark_gives_range_revision_and_group(write: Callable[..., Path]) -> None:
    text = (
        "from services.rules import reward\n"
        "@reward(range=(0, 1), revision='3', grouped=True)\n"
        "def unlike(completions, **columns):\n"
        "    return [1 - completions.count(text) / len(completions) for text in completions]\n"
    )
    scorer = RulesScorer([str(write(text))])
    info = scorer.rewards["unlike"]
    assert info.grouped and info.range == (0.0, 1.0) and info.revision.startswith("3+sha256:")
    assert scorer.score("unlike", said("a", "a", "b", "c")) == [Score(0.5), Score(0.5), Score(0.75), Score(0.75)]


def test_a_request_is_one_call_where_functions_judge_batches(write: Callable[..., Path]) -> None:
    assert RulesScorer().max_batch == MAX_BATCH
    assert RulesScorer([f"{write(TRL)}:reward_len"]).max_batch == WHOLE_BATCH


def test_a_megabyte_and_odd_signs_reach_the_function_as_they_are() -> None:
    texts = ["x" * 1_000_000, "\N{ARABIC-INDIC DIGIT FOUR}\U0001f600\x00", ""]
    assert (
        batched(lambda completions: [float(c == t) for c, t in zip(completions, texts, strict=True)]).score(
            said(*texts)
        )
        == [Score(1.0)] * 3
    )


def test_a_function_that_wants_the_other_shape_is_told_how_it_gets_it(write: Callable[..., Path]) -> None:
    """TRL gives completions as messages where prompts are, so files of its users read completion[0]["content"]."""
    path = write(
        "def of_messages(completions, **columns):\n"
        "    return [float(len(completion[0]['content'])) for completion in completions]\n\n\n"
        "def of_texts(completions, **columns):\n"
        "    return [float(len(completion.strip())) for completion in completions]\n"
    )
    spec = f"{path}:of_messages,of_texts"
    texts, messages = RulesScorer([spec]), RulesScorer([spec], conversational=True)
    assert texts.score("of_texts", said("ab")) == messages.score("of_messages", said("ab")) == [Score(2.0)]
    (found,) = texts.score("of_messages", said("ab"))
    assert isinstance(found, Failure) and found.message.endswith("in a recipe args: {conversational: true}")
    (found,) = messages.score("of_texts", said("ab"))
    assert isinstance(found, Failure) and found.message.endswith(
        "where the function takes texts, serve it without --conversational"
    )
