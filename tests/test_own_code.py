"""The one door for a user's own code: the same syntax and errors for all kinds, and contracts that are tried before a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from machine.own import OwnError, find, function, is_code, load, named
from services.own.scorer import scorer_of
from tests.support.bigram import Bigram
from tests.support.bigram_ranks import ADV, draw, gradient, make_updater
from tests.support.documents import ROOT, blocks_of
from tests.support.tiny_pipelines import make_auraflow
from trainer.config import ConfigError
from trainer.config.data import DataConfig, DatasetConfig
from trainer.config.objective import OwnConfig
from trainer.config.policy import OwnPolicyConfig
from trainer.data.datasets import load_train_prompts
from trainer.data.prompts import DataError, read_prompt_file
from trainer.evaluation.own_alarms import own_alarms
from trainer.evaluation.sets import EvaluationSet
from trainer.objectives import Scored
from trainer.objectives.own import OwnSteps, steps_loss
from trainer.policies.registry import entry_of
from trainer.programs.own_code import OwnCode, check_same_code
from trainer.records.own_code import Code, changed_code, keep_code

Write = Callable[..., Path]
SET = EvaluationSet("", (), 1, 1, 1.0, ("color",))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "mine.py") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return Path(name)

    return write_file


@pytest.mark.parametrize(
    ("text", "is_own"),
    [
        ("mine.py", True),
        ("a/b.py:f", True),
        ("pkg.mod:f", True),
        ("ocr", False),
        ("a.txt", False),
        ("owner/name", False),
        ("data/a:b.txt", False),
    ],
)
def test_what_is_code_and_what_a_file_of_data(text: str, is_own: bool) -> None:
    assert is_code(text) is is_own


@pytest.mark.parametrize("text", ["mine.py", "mine.py:", "mine.py:a,b", "mine.py:2f", ":f"])
def test_other_syntax_is_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(OwnError, match=r"objective\.code = .*write FILE\.py:NAME, or module:NAME"):
        named(text, "objective.code")


def test_a_file_that_is_not_there_and_a_name_that_it_lacks(write: Write) -> None:
    write("def clipped(x):\n    return x\n")
    with pytest.raises(OwnError, match=r"f = mime\.py:clipped: no file at .*mime\.py .*did you mean mine\.py\?"):
        find("mime.py:clipped", "f")
    with pytest.raises(OwnError, match=r"f = mine\.py:cliped: mine\.py has no cliped; did you mean clipped\?"):
        find("mine.py:cliped", "f")
    with pytest.raises(OwnError, match=r"no module nobody_has_this is installed"):
        find("nobody_has_this:f", "f")


def test_a_file_that_raises_is_said_with_its_line_and_what_lies_beside_it(write: Write) -> None:
    write("x = 1\ny = x / 0\n")
    with pytest.raises(OwnError, match=r"mine\.py does not run: ZeroDivisionError: division by zero \(line 2\)"):
        load(named("mine.py:f", "f"))
    write("VALUE = 1\n", "beside_me.py")
    write("import beside_me\n")
    with pytest.raises(OwnError, match=r"No module named 'beside_me' \(line 1\); .*PYTHONPATH="):
        load(named("mine.py:f", "f"))


def test_a_file_is_run_once_and_again_when_it_changes_and_nothing_is_written_beside_it(
    write: Write, tmp_path: Path
) -> None:
    write("import sys\nsys.own_runs = getattr(sys, 'own_runs', 0) + 1\ndef f():\n    return 1\n")
    first, again = find("mine.py:f", "f"), find("mine.py:f", "g")
    assert first.value is again.value and sys.own_runs == 1  # type: ignore[attr-defined]
    write("def f():\n    return 2\n")
    changed = find("mine.py:f", "f")
    assert (first.value(), changed.value()) == (1, 2) and changed.source.sha256 != first.source.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_an_installed_module_is_taken_by_its_name() -> None:
    assert find("json:dumps", "f").value([1]) == "[1]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f = 3", "f is a int, not a function; write def f(now, start) -> str"),
        ("class f: pass", "f is a type, not a function"),
        ("async def f(now): pass", "f(now) is async or a generator"),
        (
            "def f(nov): pass",
            "f(nov) takes nov, which nobody gives (did you mean now?); write def f(now, start) -> str",
        ),
        ("def f(now, /): pass", "f(now, /) has a parameter without a name"),
    ],
)
def test_a_wrong_signature_is_said_with_both(write: Write, text: str, message: str) -> None:
    write(text + "\n")
    with pytest.raises(OwnError) as error:
        function(find("mine.py:f", "evaluation.alarms.own.0"), ("now", "start"), "str")
    assert message in str(error.value) and "evaluation.alarms.own.0 = mine.py:f" in str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(ratio_BS): return ratio_BS.mean()", "f gave (), and a loss for each (B, S) is needed, (3, 2)"),
        ("def f(ratio_BS): return ratio_BS.detach()", "has no gradient: use logp_BS or ratio_BS"),
        ("def f(ratio_BS): return ratio_BS / ratio_BS.sum()", "a sample's loss may not depend on its neighbours"),
        ("def f(ratio_BS): return ratio_BS / 0", "on numbers that are all finite"),
        ("def f(ratio_BS): return ratio_BS.no_such()", "raised AttributeError"),
        ("def f(ratio): return ratio", "takes ratio, which nobody gives"),
        ("def f(ratio_BS, *, width): return ratio_BS", "takes width, which nobody gives"),
    ],
)
def test_an_objective_that_breaks_its_contract_is_refused_at_the_start(write: Write, body: str, message: str) -> None:
    write(body + "\n")
    with pytest.raises(ConfigError) as error:
        steps_loss(OwnConfig(type="own", code="mine.py:f"))
    assert message in str(error.value)


def test_an_objective_of_ones_own_on_answers_of_unequal_length() -> None:
    """On the bigram double, NaN behind the ends of its answers: the gradient of dapo's clipped terms, and 1 x 8 = 8 x 1."""
    found = []
    for micro, kind, updates in ((8, "own", 2), (1, "own", 2), (8, "own", 1), (8, "dapo", 1)):
        policy = Bigram()
        updater = make_updater(policy, "dapo", micro=micro, updates=updates, clip=0.2)
        if kind == "own":
            config = OwnConfig(type="own", code="tests.support.own_objectives:clipped")
            updater.objective = OwnSteps(policy, config, micro_batch_size=micro, seed=0)
        row = updater.step(Scored(draw(policy), ADV, torch.ones(8)), 0)
        found.append((row["grad_norm"], row["loss/policy"], gradient(policy)))
    (norm, loss, whole), (cut_norm, cut_loss, cut), (_, own_loss, own), (_, dapo_loss, dapo) = found
    assert norm > 1e-3 and cut_norm == pytest.approx(norm, rel=1e-5) and cut_loss == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-7)
    assert own_loss == pytest.approx(dapo_loss, rel=1e-5), "the double's dapo has a KL, which is 0 in the first update"
    torch.testing.assert_close(own, dapo, rtol=1e-4, atol=1e-7)


def test_an_objective_of_ones_own_may_say_something_of_samples_without_an_advantage(write: Write) -> None:
    """Nobody knows what it does with the advantage, so no sample is left out for one of 0, and no factor is taken out of it."""
    write("def f(logp_BS, adv_B1): return -logp_BS * (adv_B1**2 + 0.1)\n")
    policy = Bigram()
    updater = make_updater(policy, "dapo")
    updater.objective = OwnSteps(policy, OwnConfig(type="own", code="mine.py:f"), micro_batch_size=None, seed=0)
    row = updater.step(Scored(draw(policy), torch.zeros(8), torch.ones(8)), 0)
    assert row["grad_norm"] > 1e-3 and row["skipped_share"] == 0 and not OwnSteps.scales


def test_options_are_checked_by_their_annotations(write: Write) -> None:
    write("def f(ratio_BS, *, width: float = 0.2): return ratio_BS * width\n")
    for options, message in [
        ({"width": "0.2"}, "options.width = '0.2': Input should be a valid number"),
        ({"widht": 0.2}, r"options.widht is no parameter of f\(.*\) \(did you mean width\?\)"),
    ]:
        with pytest.raises(ConfigError, match=message):
            steps_loss(OwnConfig(type="own", code="mine.py:f", options=options))


def test_an_alarm_that_reads_a_number_that_is_not_there_is_refused_with_those_that_are(write: Write) -> None:
    write("def f(now): return now['eval/colour']\ndef g(now): return 1.0\ndef h(now): return None\n")
    with pytest.raises(
        ConfigError, match=r"raised KeyError: 'eval/colour' \(line 1\).*this run has eval/color, eval/color/gain"
    ):
        own_alarms(("mine.py:f",))[0].prove([SET])
    with pytest.raises(ConfigError, match=r"g gave a float \(1\.0\); give a sentence"):
        own_alarms(("mine.py:g",))[0].prove([SET])
    own_alarms(("mine.py:h",))[0].prove([SET])
    with pytest.raises(ConfigError, match="another alarm is called h, too"):
        own_alarms(("mine.py:h", "mine.py:h"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "import random\ndef f(): return [str(random.random()) for _ in range(3)]",
            "called twice it gives other prompts, first number 1",
        ),
        ("def f(): return [{'promt': 'x'}]", "mine.py:f:1: promt: unknown field"),
        ("def f(): return [3]", "mine.py:f:1: a int (3); give a text, or a dict with prompt"),
        ("def f(): return 1 / 0", "f raised ZeroDivisionError: division by zero (line 1) for split='train'"),
        ("def f(part): return []", "takes part, which nobody gives"),
        ("def f(): return []", "holds no prompt"),
    ],
)
def test_a_prompt_set_that_breaks_its_contract_is_refused(write: Write, body: str, message: str) -> None:
    write(body + "\n")
    with pytest.raises(DataError) as error:
        read_prompt_file("mine.py:f", dataset="mine")
    assert message in str(error.value)


def test_a_policy_that_writes_takes_its_questions_from_a_function_too(write: Write) -> None:
    write(
        "def sums(split):\n    for n in range(3):\n        yield {'prompt': f'{n} + 1 = ?', 'targets': [str(n + 1)]}\n"
    )
    given = DatasetConfig(path="mine.py:sums", format="questions", rewards={"number": 1.0})
    (dataset,) = load_train_prompts(DataConfig(train=(given,)))
    assert [(each.text, each.targets) for each in dataset.prompts] == [
        (f"{n} + 1 = ?", (str(n + 1),)) for n in range(3)
    ]


MODEL = "import torch\nfrom services.own import RewardModel\nclass M(RewardModel):\n    def load(self): {load}\n    def score(self, items): {score}\n"


@pytest.mark.parametrize(
    ("load_body", "score_body", "message"),
    [
        ("pass", "return torch.zeros(len(items), 5)", "M.score gave (2, 5) for 2 items"),
        ("pass", "return torch.arange(len(items)).float().softmax(0)", "may not depend on its neighbours"),
        ("1 / 0", "return []", "M raised ZeroDivisionError: division by zero (line 4) in load"),
        ("pass", "return [None] * len(items)", "scored none of its 2 probes"),
    ],
)
def test_a_reward_model_that_breaks_its_contract_is_never_ready(
    write: Write, load_body: str, score_body: str, message: str
) -> None:
    write(MODEL.format(load=load_body, score=score_body))
    scorer = scorer_of("mine.py", conversational=False, checkpoint=None, options={"device": "cpu"})
    with pytest.raises(OwnError) as error:
        scorer.load()
    assert message in str(error.value)


def test_a_reward_model_without_a_score_and_a_class_of_another_kind(write: Write) -> None:
    write("from services.own import RewardModel\nclass M(RewardModel):\n    def load(self): pass\nclass Other: pass\n")
    with pytest.raises(OwnError, match=r"the class M has no score; write def score\(self, items\)"):
        scorer_of("mine.py:M", conversational=False, checkpoint=None, options={"device": "cpu"})
    with pytest.raises(
        OwnError, match=r"the class Other\(object\) is no RewardModel; write class Other\(RewardModel\)"
    ):
        scorer_of("mine.py:Other", conversational=False, checkpoint=None, options={"device": "cpu"})


def test_the_run_folder_keeps_what_ran_and_names_what_changed(tmp_path: Path) -> None:
    first, second = (Code.of("objective.code", "a.py:f", "a.py", content) for content in (b"1\n", b"2\n"))
    assert changed_code(tmp_path, [first]) == []
    keep_code(tmp_path, [], [])
    assert not (tmp_path / "own").exists()
    keep_code(tmp_path, [first], [b"1\n"])
    assert changed_code(tmp_path, [first]) == []
    (said,) = changed_code(tmp_path, [second])
    assert first.sha256[:12] in said and second.sha256[:12] in said and str(tmp_path / "own" / first.copy) in said
    keep_code(tmp_path, [second], [b"2\n"])
    assert changed_code(tmp_path, [second]) == [] and (tmp_path / "own" / first.copy).read_bytes() == b"1\n"


class _Ranks:
    """A world of two ranks of which the other one has this to say."""

    rank, size, is_main = 0, 2, True

    def __init__(self, other: list[str]) -> None:
        self.other = other

    def gather(self, value: list[str]) -> list[list[str]]:
        return [value, self.other]


def test_ranks_with_another_file_are_named() -> None:
    own = OwnCode((Code.of("objective.code", "a.py:f", "a.py", b"1"),), (b"1",))
    check_same_code(own, _Ranks([own.code[0].sha256]))  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"objective\.code = a\.py:f: ranks \[1\] have another file than rank 0 \(sha256 ffff"
    ):
        check_same_code(own, _Ranks(["f" * 64]))  # type: ignore[arg-type]


PREDICT = "return network(x, states, timestep=sigma_B, return_dict=False)[0]"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return network(x, states, timestep=sigma_B, return_dict=False)[0].flatten(1)",
            "Aura.predict gives (2, 4096) for latents (2, 4, 32, 32)",
        ),
        pytest.param(
            f"network = self.network\n        {PREDICT}",
            "does not call the network that it is given",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            f"return ({PREDICT.removeprefix('return ')}).detach()", "lets no gradient through", marks=pytest.mark.slow
        ),
        pytest.param(
            f"{PREDICT} + x.new_empty(x.shape).normal_()", "gives other numbers the second time", marks=pytest.mark.slow
        ),
        pytest.param(
            f"x = x - x.mean(0)\n        {PREDICT}", "no sample may see its neighbours", marks=pytest.mark.slow
        ),
        pytest.param(
            "return network(x, other)",
            "raised NameError: name 'other' is not defined (line 12) when it predicts",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_policy_that_breaks_its_contract_is_refused_before_anything_starts(
    write: Write, body: str, message: str, small_aura: Path
) -> None:
    (page,) = [each.text for each in blocks_of(ROOT / "docs/tutorials/policy.md") if "class Aura" in each.text]
    write(page.replace(PREDICT, body) + "\n", "aura.py")
    section = OwnPolicyConfig(
        type="own", code="aura.py:Aura", pretrained=str(small_aura), lora=None, dtype="float32", max_sequence_length=16
    )
    with pytest.raises(ConfigError) as error:
        entry_of(section).build(section, torch.device("cpu"))
    assert message in str(error.value) and "policy.code = aura.py:Aura" in str(error.value)


@pytest.fixture(scope="module")
def small_aura(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_auraflow(tmp_path_factory.mktemp("models") / "aura")
