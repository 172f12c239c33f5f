"""A user's own Python file as rewards: what is taken, what is refused, and what a function may do."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from machine.own import OwnError
from services.kit.functions import file as functions
from services.kit.functions.file import FunctionReward, load_functions
from services.kit.scorer import Failure, Item, Score
from services.own import reward
from services.rules.scorer import RulesScorer
from wire.schema import ErrorCode, ScorerInfo

ITEM = Item("a", "four", (Image.new("RGB", (4, 4), "white"),))

MY_REWARDS = """
from dataclasses import dataclass

from services.kit.scorer import Item, Score
from services.rules import reward
from services.rules.color import color_match


@dataclass
class Weights:
    length: float = 2.0


@reward
def prompt_length(item: Item) -> float:
    return scaled(len(item.prompt))


@reward(name="size", range=(0, 100), revision="7", higher_is_better=False)
def image_width(item):
    return Score(item.images[0].width, {"height": float(item.images[0].height)}, {"seen": [1, "x"]})


def scaled(value: float) -> float:
    return value * Weights().length


def two_arguments(item, other):
    return 0.0


async def later(item):
    return 0.0


NOT_A_FUNCTION = 3
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_file(text: str, name: str = "my_rewards.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def test_only_marked_functions_become_rewards(write: Callable[..., Path]) -> None:
    rewards = load_functions(str(write(MY_REWARDS))).rewards
    assert [each.info.name for each in rewards] == ["prompt_length", "size"]
    assert rewards[0](ITEM) == Score(8.0)
    assert rewards[1](ITEM) == Score(4, {"height": 4.0}, {"seen": [1, "x"]})


def test_the_mark_sets_what_info_says(write: Callable[..., Path]) -> None:
    digest = hashlib.sha256(MY_REWARDS.encode()).hexdigest()
    plain, marked = (each.info for each in load_functions(str(write(MY_REWARDS))).rewards)
    assert plain == ScorerInfo(name="prompt_length", revision=f"1+sha256:{digest}", range=(None, None))
    assert marked == ScorerInfo(name="size", revision=f"7+sha256:{digest}", range=(0.0, 100.0), higher_is_better=False)


def test_the_examples_in_the_documentation_run(write: Callable[..., Path]) -> None:
    docstring = functions.__doc__ or ""
    example = docstring[docstring.index("    from PIL") : docstring.index("A reward function takes")]
    [rewarded] = load_functions(str(write(textwrap.dedent(example)))).rewards
    assert rewarded.info.name == "brightness"
    assert rewarded(ITEM) == Score(1.0)


def test_revision_changes_with_the_file(write: Callable[..., Path]) -> None:
    before = load_functions(str(write(MY_REWARDS))).rewards[0]
    after = load_functions(str(write(MY_REWARDS.replace("2.0", "3.0")))).rewards[0]
    assert before.info.revision != after.info.revision
    assert (before(ITEM), after(ITEM)) == (Score(8.0), Score(12.0))


def test_listed_functions_become_rewards_and_others_do_not(write: Callable[..., Path]) -> None:
    path = write("def one(item):\n    return 1\n\ndef two(item):\n    return 2\n\ndef helper(x):\n    return x\n")
    rewards = load_functions(f"{path}:two,one").rewards
    assert [(each.info.name, each(ITEM)) for each in rewards] == [("two", Score(2.0)), ("one", Score(1.0))]


def test_the_decorator_leaves_the_function_as_it_is() -> None:
    def plain(item: Item) -> float:
        return 1.0

    assert reward(plain) is plain
    assert reward(name="other")(plain) is plain


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        ("x = 1\n", "", "no function is marked as a reward; put @reward above it"),
        ("from shutil import copy\ndef f(item):\n    return 1\n", ":g", "no function named g; it has f"),
        ("def f(item):\n    return 1\n", ":f,NUMBER", "no function named NUMBER"),
        ("def f(item):\n    return 1\n", ":f,,g", "names no file and no module; write FILE.py:NAME"),
        (MY_REWARDS, ":two_arguments", "cannot be called with one item (missing a required argument: 'other')"),
        (MY_REWARDS, ":later", "is async or a generator"),
        (
            "def f():\n    return 1\n",
            ":f",
            "write def f(item: Item) -> float, or def f(completions, **columns) for the texts of a batch",
        ),
        ("def f(item):\n    yield 1\n", ":f", "is async or a generator"),
        ("1 / 0\n", "", "does not run: ZeroDivisionError: division by zero"),
        ("def f(:\n", "", "does not run: SyntaxError"),
        ("import no_such_module_here\n", "", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        (
            "from services.rules import reward\n@reward(range=(1, 0))\ndef f(item):\n    return 1\n",
            "",
            "range (1, 0) of f is not (lowest, highest)",
        ),
        (
            "from services.rules import reward\n@reward(range=(float('nan'), 1))\ndef f(item):\n    return 1\n",
            "",
            "use None for unbounded",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_remedy(
    write: Callable[..., Path], text: str, suffix: str, message: str
) -> None:
    path = write(text)
    with pytest.raises(OwnError) as error:
        load_functions(f"{path}{suffix}")
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_missing_file_and_one_that_is_not_python(tmp_path: Path, write: Callable[..., Path]) -> None:
    with pytest.raises(OwnError, match=r"no file at .*nope\.py \(No such file or directory\)"):
        load_functions(str(tmp_path / "nope.py"))
    with pytest.raises(OwnError, match=r"rewards\.txt names no file and no module; write FILE\.py:NAME"):
        load_functions(str(write("x = 1", "rewards.txt")))


def test_imported_marked_functions_belong_to_their_own_file(write: Callable[..., Path]) -> None:
    text = "from tests_helper_marked import theirs\nfrom services.rules import reward\n@reward\ndef mine(item):\n    return 1\n"
    module = write(
        "from services.rules import reward\n@reward\ndef theirs(item):\n    return 2\n", "tests_helper_marked.py"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(module.parent))
        assert [each.info.name for each in load_functions(str(write(text))).rewards] == ["mine"]


def scored(function: Callable[[Item], object], low: float | None = None, high: float | None = None) -> object:
    info = ScorerInfo(name="mine", revision="1", range=(low, high))
    return FunctionReward(info, function)(ITEM)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "value"), [(1, 1.0), (0.25, 0.25), (True, 1.0), (np.float32(0.5), 0.5), (np.int64(3), 3.0)]
)
def test_numbers_are_scores(outcome: object, value: float) -> None:
    assert scored(lambda item: outcome) == Score(value)


def test_none_is_not_applicable_and_a_failure_passes_through() -> None:
    failure = Failure(ErrorCode.UPSTREAM, "the other server is away")
    assert scored(lambda item: failure) is failure
    result = scored(lambda item: None)
    assert isinstance(result, Failure)
    assert result.code is ErrorCode.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        (float("nan"), ErrorCode.NON_FINITE, "score is nan"),
        (float("inf"), ErrorCode.NON_FINITE, "score is inf"),
        (Score(1.0, {"part": float("-inf")}), ErrorCode.NON_FINITE, "part is -inf"),
        ("0.5", ErrorCode.INTERNAL, "returned a str; a float, Score, Failure or None is needed"),
        ([1.0], ErrorCode.INTERNAL, "returned a list"),
        (Score("high"), ErrorCode.INTERNAL, "TypeError"),  # type: ignore[arg-type]
        (Score(0.5, details={"image": object()}), ErrorCode.INTERNAL, "details are not JSON"),  # type: ignore[dict-item]
        (Score(0.5, details={"x": float("nan")}), ErrorCode.INTERNAL, "details are not JSON"),
        (1.5, ErrorCode.INTERNAL, "returned 1.5, outside its range 0.0 to 1.0"),
        (-0.5, ErrorCode.INTERNAL, "returned -0.5, outside its range 0.0 to 1.0"),
        (10**400, ErrorCode.INTERNAL, "OverflowError"),
    ],
)
def test_what_is_not_a_score_fails_with_the_reason(outcome: object, code: ErrorCode, words: str) -> None:
    result = scored(lambda item: outcome, 0.0, 1.0)
    assert isinstance(result, Failure)
    assert result.code is code
    assert words in result.message
    assert "mine" in result.message


def test_a_bound_missed_by_rounding_is_kept() -> None:
    assert scored(lambda item: 1.0 + 1e-9, 0.0, 1.0) == Score(1.0 + 1e-9)


def test_an_exception_fails_its_own_item_only(write: Callable[..., Path]) -> None:
    path = write(
        "def picky(item):\n    if item.prompt == 'bad':\n        raise KeyError('no such thing')\n    return 1\n"
    )
    scorer = RulesScorer([f"{path}:picky"])
    good, bad = Item("g", "good", completion="x"), Item("b", "bad", completion="x")
    results = scorer.score("picky", [good, bad, good])
    assert results[0] == results[2] == Score(1.0)
    assert results[1] == Failure(ErrorCode.INTERNAL, "picky raised KeyError: 'no such thing'")


def test_two_rewards_of_one_name_are_refused_with_both_places(write: Callable[..., Path]) -> None:
    first = write("def f(item):\n    return 1\n", "first.py")
    second = write("def f(item):\n    return 2\n\ndef color_match(item):\n    return 3\n", "second.py")
    with pytest.raises(OwnError) as error:
        RulesScorer([f"{first}:f", f"{second}:f"])
    assert "first.py" in str(error.value)
    assert "second.py" in str(error.value)
    with pytest.raises(OwnError, match="'color_match' is already served \\(the built-in one\\)"):
        RulesScorer([f"{second}:color_match"])


def test_scorer_serves_builtin_rewards_first_and_warms_them_up() -> None:
    scorer = RulesScorer()
    scorer.load()
    images, answers = (
        ["color_match", "side_by_side", "jpeg_compressibility", "jpeg_incompressibility"],
        ["option_letter", "number", "exact_answer", "answer"],
    )
    forms = ["think_format", "answer_format", "tag_count", "length", "overlong", "json_valid"]
    assert list(scorer.rewards) == images + answers + forms
    for name, item in scorer.warmup():
        assert isinstance(scorer.score(name, [item])[0], Score)
    assert scorer.score("color_match", [scorer.warmup()[0][1]])[0] == Score(
        1.0, details={"target": "red", "ink_pixels": 64, "shares": {"red": 1.0}}
    )
    scorer.close()
