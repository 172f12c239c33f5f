"""docs/rewards.md: every reward that a service gives is in both tables, and its commands and recipe are real."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from services.kit.settings import load_settings
from services.rules.__main__ import RulesSettings, make_scorer
from tests.support.deployment import settings_of
from trainer.config import Config, RewardsConfig
from trainer.config.service_names import REWARDS

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
    texts = [name for name in REWARDS["rules"] if name != "color_match" and "jpeg" not in name]
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
