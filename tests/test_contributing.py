"""CONTRIBUTING's recipes, carried out as a newcomer would: each in a copy of the tree of its own, with nothing added.

A section "Add a ..." names its files in the first line of each code block: `# path` is a new file, `+++ b/path` a change of
one that is there. The copy gets what the blocks say and nothing else, and then runs the commands that the section gives.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# Files that an addition may touch, its test included.
MOST = {"estimator": 2, "objective": 3, "policy": 3, "program": 3, "service": 4}


def section(name: str) -> str:
    """The text of "## Add a <name>"."""
    found = re.search(rf"^## Add an? {name}\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
    assert found, f"CONTRIBUTING.md has no section on adding a {name}"
    return found[1]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of the code blocks."""
    return re.findall(r"^ *```(\w+)\n(.*?)^ *```", text, re.S | re.M)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the files that git knows, as they are now."""
    target = tmp_path / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    (target / ".venv").symlink_to(sys.prefix)
    return target


def carry_out(clone: Path, name: str) -> list[str]:
    """Do what the section's blocks say. Returns the files that were touched."""
    touched = []
    for language, content in blocks(section(name)):
        first, _, rest = content.partition("\n")
        if language == "python":
            path = first.removeprefix("# ")
            assert not (clone / path).exists(), f"{path} is there already"
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            (clone / path).write_text(rest.lstrip("\n"), encoding="utf-8")
        elif language == "diff":
            path = first.removeprefix("+++ b/")
            for hunk in rest.split("@@\n")[1:]:
                change(clone / path, hunk)
        else:
            continue
        touched.append(path)
    print(f"add a {name}: {len(set(touched))} files: {', '.join(touched)}")
    return touched


def change(path: Path, hunk: str) -> None:
    """Apply a hunk of a diff; its lines before the change stand in the file once."""
    lines = hunk.splitlines()
    before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{path} has this {text.count(before)} times:\n{before}"
    path.write_text(text.replace(before, after), encoding="utf-8")


def run_commands(clone: Path, name: str) -> None:
    """Run the section's commands; each must succeed."""
    commands = [content for language, content in blocks(section(name)) if language == "bash"]
    assert commands
    for content in commands:
        done = subprocess.run(
            ["bash", "-ec", content], cwd=clone, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, f"{content}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


def check_style(clone: Path, touched: list[str]) -> None:
    """What is on the page passes the checks that `make check` makes of it."""
    ruff = [sys.executable, "-m", "ruff"]
    for check in (["check", "-q"], ["format", "--check", "-q"]):
        done = subprocess.run(
            [*ruff, *check, *sorted(set(touched))], cwd=clone, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["estimator", "objective", "policy", "program", "service"])
def test_what_is_added_to_the_project(clone: Path, name: str) -> None:
    touched = carry_out(clone, name)
    assert len(set(touched)) <= MOST[name]
    check_style(clone, touched)
    run_commands(clone, name)


def test_every_recipe_says_how_many_files_it_touches() -> None:
    for name, most in MOST.items():
        assert re.search(rf"\b{most} files?\b", section(name)), name
