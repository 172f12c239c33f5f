"""CONTRIBUTING's "Add a service", done literally in a copy of the tree: four files, and everything of the kit holds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    "wire",
    "machine",
    "services",
    "loadtest",
    "trainer",
    "docs",
    "deploy",
    "docker",
    "requirements",
    "tests/support",
)
FILES = ("pyproject.toml", "README.md", "docker-compose.yml", "tests/conftest.py", "tests/test_import_rules.py")
CATALOGUE = "services/kit/catalogue.py"


def recipe() -> tuple[dict[str, str], str]:
    """The new files of the recipe with their texts, and the line for the list of services."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = guide[guide.index("## Add a service") : guide.index("## Add a policy")]
    files = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", section, re.M | re.S)
    [entry] = re.findall(r"^```text\n(.*?)^```", section, re.M | re.S)
    return dict(files), entry


@pytest.mark.slow
def test_the_recipe_for_a_service_works_as_it_is_written(tmp_path: Path) -> None:
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    shutil.copytree(ROOT / "tests/services/kit", tmp_path / "tests/services/kit")
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    texts, entry = recipe()
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    before, after = (tmp_path / CATALOGUE).read_text(encoding="utf-8").split("\n)\n\nDEPLOYED")
    (tmp_path / CATALOGUE).write_text(f"{before}\n{entry.rstrip()}\n)\n\nDEPLOYED{after}", encoding="utf-8")
    touched = {*texts, CATALOGUE}
    print(f"a service touches {len(touched)} files")
    assert len(touched) == 4

    def run(*command: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    new = [name for name in texts if name.startswith("tests/")]
    rules = "tests/test_import_rules.py::test_the_tree_keeps_the_rules"
    run("pytest", "-q", "-p", "no:cacheprovider", *new, "tests/services/kit/test_catalogue.py", rules)
    own = [name for name in texts if name.startswith("services/")]
    run("ruff", "check", "-q", *texts)
    run("ruff", "format", "--check", "-q", *texts)
    run("mypy", "--no-incremental", "--follow-imports=silent", *own)
