"""README and CONTRIBUTING: what they link to exists, and the commands, recipes and reward in them are real."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from services.kit.scorer import Item, Score
from services.rules.scorer import RulesScorer
from trainer.__main__ import build_parser
from trainer.config import Config
from trainer.config.file import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    nested = {
        key: merged(base[key], value) for key, value in changes.items() if isinstance(value, dict) and key in base
    }
    return {**base, **changes, **nested}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_named_paths_modules_and_targets_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    # What CONTRIBUTING's blocks name is not there yet: test_contributing.py adds it.
    text = re.sub(r"^```(?:python|diff)\n.*?^```|^\.venv/bin/python -m pytest .*?$", "", text, flags=re.S | re.M)
    folders = "machine|wire|services|trainer|configs|benchmarks|docs|tests|assets|requirements|scripts"
    paths = set(re.findall(rf"(?<![\w./])((?:{folders})/[\w./]+\.(?:py|yaml|jsonl|md|txt))", text))
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    modules = set(re.findall(r"python -m ([a-z_.]+)", text))
    assert modules
    assert [name for name in sorted(modules) if find_spec(name) is None] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.M))
    assert [target for target in sorted(targets) if not re.search(rf"^{target}:", makefile, re.M)] == []


def test_trainer_commands_are_understood() -> None:
    commands = re.findall(r"python -m trainer ((?:train|sft|doctor|report) [\w./=]+)", README)
    assert len(commands) >= 3
    for command in commands:
        build_parser().parse_args(command.split())


def test_train_commands_would_start() -> None:
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines() if "bash train.sh" in line]
    assert len(lines) >= 4
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", f"DRY_RUN=1 {line}"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, line + done.stderr
        overrides = [word for word in line.split("train.sh")[1].split() if "=" in word]
        load_config(ROOT / "configs/quickstart.yaml", Config, overrides)


def test_the_reward_in_ten_lines_works_and_its_recipe_loads(tmp_path: Path) -> None:
    (code,) = blocks("python")
    assert len(code.strip().splitlines()) <= 10
    (tmp_path / "my_rewards.py").write_text(code, encoding="utf-8")
    scorer = RulesScorer((str(tmp_path / "my_rewards.py"),))
    scorer.load()
    image = Image.new("RGB", (4, 4), (255, 255, 255))
    (result,) = scorer.score("brightness", [Item(id="a", prompt="", images=(image,))])
    assert isinstance(result, Score)
    assert result.value == pytest.approx(1.0)

    (recipe,) = blocks("yaml")
    quickstart = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(merged(quickstart, yaml.safe_load(recipe))), encoding="utf-8")
    assert load_config(path, Config, []).rewards.columns["brightness"].service == "mine"


@pytest.mark.parametrize("module", ["services.ocr", "services.rules"])
def test_flags_that_are_named_exist(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    named = {flag for line in README.splitlines() if module in line for flag in re.findall(r" (--[a-z-]+)", line)}
    assert [flag for flag in sorted(named) if flag not in done.stdout] == []
