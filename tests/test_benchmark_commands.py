"""Benchmarks are run by their file's name, as their page says, and find the project's modules; that of packing measures what it says."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import packing

ROOT = Path(__file__).resolve().parents[1]
OURS = {"benchmarks", "loadtest", "machine", "rewards", "services", "tests", "trainer", "wire"}
NAMED = sorted(
    {
        name
        for page in (
            ROOT / "benchmarks" / "README.md",
            *(ROOT / "docs").rglob("*.md"),
            *(ROOT / "benchmarks").glob("*.py"),
        )
        for name in re.findall(r"python benchmarks/(\w+)\.py", page.read_text(encoding="utf-8"))
    }
)


def imports_ours(text: str) -> bool:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return bool(found & OURS)


@pytest.mark.parametrize("name", NAMED)
def test_a_benchmark_finds_the_projects_modules(name: str) -> None:
    """Python puts the folder of the file on its path, and not the folder that it is started in."""
    text = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    assert not imports_ours(text) or "sys.path.insert(0" in text


def test_packs_are_compared_with_padding_as_the_page_says() -> None:
    layouts = packing.layouts(rounds=1, tokens=256)
    padded = next(value for name, value in layouts.items() if name.startswith("padded"))
    packs = [value for name, value in layouts.items() if name.startswith("packs")]
    assert padded["packs"] == 1 and 0 < padded["padding"] < 1 and len(packs) == 2 * len(packing.LENGTHS)
    assert all(each["padding"] == 0 and each["tokens_per_s"] > 0 for each in packs)
    assert packs[0]["packs"] == 2 and packs[-1]["packs"] == 1, "equally full"
    assert list(packing.copies(rounds=1, tokens=256)) == ["1", "2", "3", "4", "8"]


@pytest.mark.slow
def test_a_start_on_many_rows_is_a_whole_run(tmp_path: Path) -> None:
    out = tmp_path / "packing.json"
    command = [sys.executable, "benchmarks/packing.py", "rows", "starts", "--count", "1000", "--out", str(out)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = json.loads(out.read_text())
    assert list(found) == ["rows", "starts"] and list(found["rows"]) == ["10", "100", "1000"]
    assert list(found["starts"]) == ["1", "1000"] and "| 1,000 |" in told


@pytest.mark.slow
def test_the_quickstart_of_packed_training_is_measured_as_a_whole(tmp_path: Path) -> None:
    """Supervised, without thoughts, by rewards and with shuffled ones: tables, results and the picture, and none of it over what is kept."""
    command = [
        sys.executable,
        "benchmarks/unified_quickstart.py",
        "all",
        "--seeds",
        "1",
        "--steps",
        "2",
        "--output-dir",
        str(tmp_path),
    ]
    told = subprocess.run(
        [*command, "distributed.num_threads=1"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for which, runs in (("sft", ["sft_seed1"]), ("control", ["control_seed1"]), ("rl", ["rl_seed1", "rl_shuffled1"])):
        found = json.loads((tmp_path / f"unified_{which}.json").read_text())
        assert list(found) == runs and all(each["steps"] == 2 and len(each["points"]) == 2 for each in found.values())
        assert all(f"| {name} |" in told for name in runs)
    assert (tmp_path / "picture.png").stat().st_size > 10_000 and (
        tmp_path / "sft_seed1" / "model" / "ema.safetensors"
    ).is_file()
