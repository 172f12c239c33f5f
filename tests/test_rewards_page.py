"""docs/rewards.md: every reward that a service gives is in both tables, and its commands and recipe are real."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from services.kit.scorer import Failure, Item, Score
from services.kit.settings import load_settings
from services.rules.__main__ import RulesSettings, make_scorer
from services.rules.scorer import RulesScorer
from tests.support.deployment import settings_of
from tests.support.task_configs import task_tree
from trainer.config import Config, RewardsConfig
from trainer.config.service_names import REWARDS
from trainer.rewards.asked import texts_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.S | re.M)
NUMBERS, BLIND, WEIGHTS = re.split(r"^## ", PAGE, flags=re.M)[1:4]


def first_cells(section: str) -> str:
    return "\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| "))


@pytest.mark.parametrize("service", REWARDS)
def test_every_reward_has_its_row_in_both_tables(service: str) -> None:
    [own] = [[cell for cell in first_cells(NUMBERS).splitlines() if cell.strip().startswith(f"`{service}`:")]]
    assert set(re.findall(r"`([\w.]+)`", "".join(own).replace(f"`{service}`:", ""))) == set(REWARDS[service])
    blind = set(re.findall(r"`([\w.]+)`", first_cells(BLIND)))
    units = {"pickscore_26", "pickscore_cosine"}
    ocr = set(REWARDS["ocr"]) if "ocr" in blind else set()
    assert not set(REWARDS[service]) - units - ocr - blind
    assert f"| `{service}` |" in WEIGHTS


def test_the_serve_commands_have_flags_that_exist() -> None:
    lines = [line.split("  #")[0] for line in re.findall(r"^python -m services\.[^\n]+", WEIGHTS, re.M)]
    served = [shlex.split(line)[2:] for line in lines if " convert " not in line]
    assert len(served) == 7
    for module, *flags in served:
        settings = load_settings(settings_of(module.removeprefix("services.")), flags)
        assert settings.port


def test_the_benchmarks_command_has_flags_that_exist() -> None:
    [command] = re.findall(r"python -m services\.geneval run ((?:[^\n]|\\\n)+?)\n```", PAGE)
    done = subprocess.run(
        [sys.executable, "-m", "services.geneval", "run", "--help"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert all(flag in done.stdout for flag in re.findall(r"--\w+", command))


def test_the_held_out_set_is_a_recipe() -> None:
    tree = yaml.safe_load(BLOCKS[1])
    recipe = yaml.safe_load((ROOT / "configs/sd35_medium_pickscore.yaml").read_text())
    recipe["rewards"]["services"] |= tree["rewards"]["services"]
    recipe["rewards"]["columns"] |= tree["rewards"]["columns"]
    recipe["evaluation"]["sets"] = tree["evaluation"]["sets"]
    loaded = Config.model_validate(recipe)
    assert loaded.evaluation.sets[0].rewards == ("geneval",)


def test_the_columns_of_texts_are_a_recipe_of_rewards_that_exist() -> None:
    tree = RewardsConfig.model_validate(yaml.safe_load(BLOCKS[0])["rewards"])
    assert list(tree.columns) == ["accuracy", "format", "length"]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in tree.services["rules"].args.items()]
    served = make_scorer(load_settings(RulesSettings, flags)).rewards
    assert all(column.reward in served for column in tree.columns.values())


def test_every_reward_of_texts_has_its_row() -> None:
    of_images = ("color_match", "side_by_side", "jpeg_compressibility", "jpeg_incompressibility")
    texts = [name for name in REWARDS["rules"] if name not in of_images]
    [section] = re.findall(r"^## Texts: .*?(?=^## )", PAGE, re.S | re.M)
    assert [name for name in re.findall(r"^\| `(\w+)` \|", section, re.M)] == texts
    for command in re.findall(r"^python -m services\.rules ([^#\n]+)", section, re.M):
        assert load_settings(RulesSettings, shlex.split(command)).functions


def test_the_benchmark_fills_in_every_cost_it_measures() -> None:
    from benchmarks.image_rewards import CASES, SAME, fill_page

    costs = {case.rewards[0]: "123" for case in CASES if len(case.rewards) == 1}
    filled = fill_page(PAGE, costs)
    rows = [line.split("|") for line in filled.splitlines() if re.match(r"\| `\w+`: `", line)]
    assert {row[4].strip() for row in rows} >= {"123"} and not [row for row in rows if row[4].strip() == "m"]
    measured = [re.findall(r"`(\w+)`", row[1])[1] for row in rows if row[4].strip() == "123"]
    assert {SAME.get(name, name) for name in measured} == set(costs)
    changed = [after for before, after in zip(PAGE.splitlines(), filled.splitlines(), strict=True) if before != after]
    assert all(line.endswith("| 123 |") for line in changed), "and nothing else"


def test_the_rewards_of_both_halves_are_a_recipe() -> None:
    tree, found = yaml.safe_load(BLOCKS[2]), task_tree()
    tasks = {task: {**each, **tree["sampling"]["tasks"][task]} for task, each in found["sampling"]["tasks"].items()}
    found["sampling"]["tasks"], found["rewards"] = tasks, tree["rewards"]
    config = Config.model_validate(found)
    assert texts_of(config) == {"letter"}
    for name, served in (("letter", "rules"), ("hps", "hps")):
        assert config.rewards.columns[name].reward in REWARDS[served]


@pytest.fixture(scope="module")
def git_scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RulesScorer]:
    """The page's file, served as the page says, before a GIT of random weights that says yes three times as often as no."""
    from transformers import BertTokenizerFast, CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    folder = tmp_path_factory.mktemp("git")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "yes",
        "no",
        "is",
        "there",
        "a",
        "red",
        "disc",
        "bar",
        "in",
        "the",
        "image",
        "?",
    ]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = GitConfig(
        vision_config={**size, "image_size": 8, "patch_size": 4},
        vocab_size=len(words),
        bos_token_id=2,
        eos_token_id=3,
        **size,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GitForCausalLM(config)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
        model.output.bias[words.index("yes")] = math.log(3)
    model.save_pretrained(folder / "model")
    images = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    GitProcessor(images, tokenizer).save_pretrained(folder / "model")
    [file] = re.findall(r"^```python\n(# git_reward\.py\n.*?)^```", PAGE, re.S | re.M)
    (folder / "git_reward.py").write_text(file, encoding="utf-8")
    [command] = re.findall(r"^\$ GIT_MODEL=\S+ python -m services\.rules (.*)$", PAGE, re.M)
    flags = shlex.split(command.replace("git_reward.py", str(folder / "git_reward.py")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_MODEL", str(folder / "model"))
        yield make_scorer(load_settings(RulesSettings, flags))


def test_the_worked_example_of_a_scorer_scores(git_scorer: RulesScorer) -> None:
    """Logits ln 3 and 0 of yes and no: 3 / (3 + 1), whatever the noun; a row without nouns has no score."""
    image = Image.new("RGB", (12, 10), "red")
    asked, silent = (Item("a", "a red disc", (image,), metadata=more) for more in ({"nouns": ["disc", "red bar"]}, {}))
    scored, missing = git_scorer.score("git", [asked, silent])
    assert isinstance(scored, Score) and scored.value == pytest.approx(0.75)
    assert isinstance(missing, Failure) and missing.code == "not_applicable"
    column = RewardsConfig.model_validate(yaml.safe_load(BLOCKS[3])["rewards"]).columns["git"]
    assert column.reward in git_scorer.rewards
