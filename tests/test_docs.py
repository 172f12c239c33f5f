"""README, CONTRIBUTING and docs/: what they link to exists, and the commands, recipes and reward in them are real."""

from __future__ import annotations

import re
import shlex
import subprocess
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import BaseSettings

from rewards.command import VERBS
from services.kit.catalogue import CATALOGUE
from trainer.__main__ import build_parser
from trainer.commands import VERBATIM
from trainer.config import Config
from trainer.config.file import load_config
from trainer.rewards.answers import ClientCode
from wire.schema import ErrorCode

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
TROUBLE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
# What README leads to first: how to train, and how to serve.
GUIDE = README + "".join((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("training", "services"))
COMMANDS = [page for page in PAGES if page.name != "LOG.md" and "decisions" not in page.parts]


def blocks(language: str, text: str = GUIDE) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.S | re.M)


def lines_of(page: Path, program: str) -> list[str]:
    """The page's shell lines that start `program`, joined where they go on, without comments and redirections."""
    text = page.read_text(encoding="utf-8")
    found = [line for block in blocks("bash", text) for line in block.replace("\\\n", " ").splitlines()]
    return [re.split(r" +# | [|&>]|;", line.split(program, 1)[1])[0].strip() for line in found if f"{program}" in line]


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


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/training.md", "docs/services.md"])
def test_named_paths_modules_and_targets_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    # What CONTRIBUTING's blocks name is not there yet: test_contributing.py adds it.
    text = re.sub(
        r"^```(?:python|diff)\n.*?^```|^\.venv/bin/(?:python -m pytest|mypy) .*?$", "", text, flags=re.S | re.M
    )
    folders = "machine|wire|services|trainer|configs|benchmarks|docs|tests|assets|requirements|scripts"
    paths = set(re.findall(rf"(?<![\w./])((?:{folders})/[\w./]+\.(?:py|yaml|jsonl|md|txt))", text))
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    modules = set(re.findall(r"python -m ([a-z_.]+)", text))
    assert modules
    assert [name for name in sorted(modules) if find_spec(name) is None] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.M))
    assert [target for target in sorted(targets) if not re.search(rf"^{target}:", makefile, re.M)] == []


@pytest.mark.parametrize("page", COMMANDS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_trainer_commands_are_understood(page: Path) -> None:
    for command in lines_of(page, "python -m trainer "):
        verb, *rest = shlex.split(command)
        if verb not in ("from-deepgen", *VERBATIM):  # whose flags are other programs', and tested with them
            assert build_parser().parse_args([verb, *rest]).command == verb


@pytest.mark.parametrize("page", COMMANDS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_service_commands_have_flags_that_exist(page: Path) -> None:
    for command in lines_of(page, "python -m services."):
        name = command.split()[0]
        if "." in name:  # a stand-in of the kit, with flags of its own
            assert find_spec(f"services.{name}")
            continue
        known = flags_of(name)
        named = re.findall(r"(?<= )(--[a-z][a-z-]+)", command)
        assert [flag for flag in named if flag not in known] == [], command


def flags_of(name: str) -> set[str]:
    """Every flag of a service's commands, from their settings."""
    modules = [import_module(f"services.{name}.__main__")]
    modules += [import_module(f"services.{name}.{part}") for part in ("settings", "commands") if _is_there(name, part)]
    classes = [
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, BaseSettings)
    ]
    return {f"--{field.replace('_', '-')}" for each in classes for field in each.model_fields} | {"--help"}


def _is_there(name: str, part: str) -> bool:
    return find_spec(f"services.{name}.{part}") is not None


def test_readme_is_short_and_every_page_is_in_the_index() -> None:
    assert len(re.sub(r"<!--.*?-->", "", README).split()) <= 1600
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", index))


def test_how_one_step_works_names_files_and_functions_that_exist() -> None:
    text = (ROOT / "docs/how-one-step-works.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:trainer|services|wire)/[\w/.]*)`", text)
    paths += [f"services/{path}" for path in re.findall(r"`(kit/[\w/.]*)`", text)]
    paths += [f"trainer/rewards/{path}" for path in re.findall(r"`(\w+\.py)`", text)]
    assert len(paths) > 30 and [path for path in paths if not (ROOT / path).exists()] == []
    code = "".join(path.read_text("utf-8") for each in ("trainer", "services") for path in (ROOT / each).rglob("*.py"))
    names = re.findall(r"`(?:[A-Z]\w+\.)?([a-z]\w+)`", text) + re.findall(r"`([A-Z]\w+)(?:\.\w+)?`", text)
    assert [name for name in names if not re.search(rf"\b(?:def|class) {name}\b|\b{name}\b", code)] == []


def test_troubleshooting_quotes_what_the_code_says_and_knows_every_code() -> None:
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("trainer", "services", "machine")
        for path in sorted((ROOT / folder).rglob("*.py"))
    )
    rows = [line.split("|")[1].strip() for line in TROUBLE.splitlines() if line.startswith("| `")]
    said = [re.findall(r"`([^`]+)`", row)[0] for row in rows]
    joined = re.sub(r"\"\s*\n\s*f?\"", "", code)  # sentences over several lines
    assert [each for each in said if each not in joined] == []
    assert {code.value for code in ErrorCode} | {code.value for code in ClientCode} <= set(said)


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


@pytest.mark.parametrize("page", COMMANDS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_rewards_are_understood(page: Path) -> None:
    """In bash blocks: the verb, the service, and the words that the trainer's parser takes."""
    text = page.read_text(encoding="utf-8")
    for line in "".join(blocks("bash", text)).replace("\\\n", " ").splitlines():
        if not (match := re.match(r"(?:source <\()?(?:\.venv/bin/)?(?:python -m )?rewards ([^#|>&;)]+)", line.strip())):
            continue
        verb, *rest = shlex.split(match[1])
        assert verb in {*VERBS, "--help", "--version"}, line
        if verb == "serve":
            assert rest[0] in {entry.name for entry in CATALOGUE} or rest[0].endswith(".py"), line
        elif verb in VERBS and (command := VERBS[verb].command) is not None:
            assert build_parser().parse_args([command, *rest]).command == command, line
