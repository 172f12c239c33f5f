"""A mistake is said before torch is imported, which takes seconds, with the nearest name that is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.clip.scorer import ClipScorer
from services.eval.scorer import REWARD
from services.geneval.scorer import GenevalScorer
from services.hps.checkpoint import REWARDS as HPS_REWARDS
from services.imagereward.scorer import ImageRewardScorer
from services.kit.catalogue import DEPLOYED
from services.kit.models.sources import Source
from services.ocr.scoring import VARIANTS
from services.regression.recipe import RECIPES
from services.rules.scorer import RulesScorer
from services.textjudge.scorer import TextJudgeScorer
from services.textjudge.settings import TextJudgeSettings
from services.unifiedreward.kinds import PAIR_QUESTIONS, POINT_QUESTIONS
from services.vqa.questions import READINGS
from trainer import __main__ as command
from trainer.config import Config, ConfigError
from trainer.config.file import load_config
from trainer.config.service_names import REWARDS, check_args

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = "configs/quickstart.yaml"
ASSETS = "assets/quickstart"
PROGRAM = """
import json, sys
from trainer.{module} import main
try:
    code = main(json.loads(sys.argv[1]))
except SystemExit as end:
    code = end.code
print("heavy:", [name for name in ("torch", "numpy", "PIL", "httpx", "matplotlib") if name in sys.modules])
sys.exit(code)
"""


def run(*arguments: str, module: str = "__main__") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module), json.dumps(arguments)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "300"},
        timeout=300,
    )


def test_help_is_printed_without_torch() -> None:
    shown = run("--help")
    assert shown.returncode == 0 and all(name in shown.stdout for name in command.COMMANDS)
    assert "heavy: []" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", QUICKSTART], "did you mean train?"),
        ([QUICKSTART], f"python -m trainer train {QUICKSTART}"),
        (["train", "configs/quikstart.yaml"], "did you mean configs/quickstart.yaml?"),
        (["evaluate", "no.yaml"], "no file at"),
        (["doctor", "no.yaml"], "no file at"),
        (["sft", "no.yaml"], "no file at"),
        (["train", "README.md"], "is not YAML"),
        (["train", QUICKSTART, "sed=2"], "did you mean seed?"),
        (["doctor", QUICKSTART, "polcy.type=tiny"], "did you mean policy?"),
        (["train", QUICKSTART, "rewards.services.ocr.module=orc"], "did you mean ocr?"),
        (["train", QUICKSTART, "rewards.columns.ocr.reward=flow_grop"], "did you mean flow_grpo?"),
        (["train", QUICKSTART, "data.train.0.rewards={ocrr: 1.0}"], "did you mean ocr?"),
        (["train", QUICKSTART, "rewards.columns.ocr.service=orc"], "did you mean ocr?"),
        (["train", QUICKSTART, "data.train.0.path=no.txt"], "no prompt file at"),
        (["train", QUICKSTART, f"data.train.0.path={ASSETS}/trian.jsonl"], f"did you mean {ASSETS}/train.jsonl?"),
        (["train", QUICKSTART, f"policy.checkpoint={ASSETS}/bse.safetensors"], f"mean {ASSETS}/base.safetensors?"),
        (["evaluate", QUICKSTART, "policy.checkpoint=/no/where.st"], "policy.checkpoint = /no/where.st: nothing at"),
        (["train", QUICKSTART, "algorithm.kl_beta=0.1"], "write objective.kl_beta=0.1"),
        (["migrate-config", "no.yaml"], "no file at"),
        (["evaluate", QUICKSTART, "evaluation.path=no.txt"], "no prompt file at"),
        (["evaluate", QUICKSTART, "--checkpoint", "no"], "--checkpoint: nothing at"),
        (["train", "configs/quickstart_base.yaml", "quickstart=null"], "give the section quickstart"),
        (["sft", QUICKSTART], f"python -m trainer train {QUICKSTART}"),
        (["train", "configs/datasets/deepgen_train.yaml"], "data.dataset_config"),
        (["report", "no"], "nothing at"),
        (["export", "no", "--to", "lora", "--output", "new"], "nothing at"),
        (["export", "no", "--to", "lroa", "--output", "new"], "did you mean lora?"),
        (["flight", "no"], "no flight record"),
        (["from-deepgen", "--prompts_file", "no.txt"], "no prompt file at"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_said_without_torch(arguments: list[str], words: str) -> None:
    said = run(*arguments)
    assert said.returncode == (1 if arguments[0] == "doctor" else 2), said.stderr
    assert words in said.stderr + said.stdout
    assert "Traceback" not in said.stderr
    assert "heavy: []" in said.stdout


def test_the_launcher_says_it_once_and_starts_nothing() -> None:
    said = run("--nproc", "4", "train", QUICKSTART, "sed=2", module="processes.launch")
    assert said.returncode == 2 and said.stderr.count("did you mean seed?") == 1
    assert "heavy: []" in said.stdout


def test_a_misspelt_flag_of_a_service_is_found_before_it_starts() -> None:
    with pytest.raises(ValueError, match=r"services.ocr has no flag 'mod'; did you mean mode\?"):
        check_args("services.ocr", "ocr", {"mod": "line"})
    for module, flag in (
        ("rules", "functions"),
        ("hps", "threads"),
        ("ocr", "max-items"),
        ("vqa", "judge-url"),
        ("x", "y"),
    ):
        check_args("services.it", module, {flag: 1})


def test_the_table_of_rewards_is_that_of_the_services() -> None:
    assert set(REWARDS["ocr"]) == set(VARIANTS)
    assert set(REWARDS["hps"]) == set(HPS_REWARDS.values())
    assert set(REWARDS["rules"]) == set(RulesScorer().rewards)
    assert set(REWARDS["unifiedreward"]) == {*PAIR_QUESTIONS, *POINT_QUESTIONS}
    assert REWARDS["eval"] == (REWARD,)
    some = Source(Path("some"), "clip", "0" * 64)
    assert set(REWARDS["clip"]) == set(ClipScorer(some, some, some, device="cpu").rewards)
    assert set(REWARDS["geneval"]) == set(GenevalScorer(some, device="cpu").rewards)
    assert set(REWARDS["imagereward"]) == set(ImageRewardScorer(some, some.path, device="cpu").rewards)
    assert set(REWARDS["regression"]) == set(RECIPES)
    assert set(REWARDS["vqa"]) == set(READINGS)
    assert set(REWARDS["textjudge"]) == set(TextJudgeScorer(TextJudgeSettings()).rewards)
    assert set(REWARDS) == {entry.name for entry in DEPLOYED}


@pytest.mark.parametrize(
    "given",
    [
        "{module: rules, args: {functions: my.py}}",
        "{module: rules, args: {functions: 'my.py:brightness,warmth'}}",
        "{module: rules, args: {functions: 'other.py,my.py'}}",
        "{module: rules, args: {functions: missing.py}}",  # the service says what is wrong with it
        "{module: kit.testing.fakes}",
        "{urls: ['http://127.0.0.1:1']}",  # only the service knows
    ],
)
def test_names_of_a_users_own_functions_are_taken(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text("def brightness(item): ...\n\n\nwarm = reward(name='warmth')(lambda item: 1.0)\n")
    Path("other.py").write_text("def contrast(item): ...\n")
    for wanted in ("brightness", "warmth"):
        overrides = [f"rewards.services.rules={given}", f"rewards.columns.color.reward={wanted}"]
        assert load_config(ROOT / QUICKSTART, Config, overrides).rewards.columns["color"].reward == wanted


def test_a_misspelt_function_of_ones_own_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text("def brightness(item): ...\n")
    service = "rewards.services.rules={module: rules, args: {functions: my.py}}"
    with pytest.raises(ConfigError, match=r"did you mean brightness\?"):
        load_config(ROOT / QUICKSTART, Config, [service, "rewards.columns.color.reward=brightnes"])
