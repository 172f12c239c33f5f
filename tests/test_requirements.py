"""The requirement files' extras and builds: reporters that are not installed, torch's build, a compiler, the hashes' script."""

from __future__ import annotations

import importlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import hash_requirements
from scripts.hash_requirements import needed, pins, wanted
from trainer.config import Config, ConfigError
from trainer.config.file import load_config
from trainer.doctor.machine import check_compiler
from trainer.doctor.packages import check_packages, check_reporters
from trainer.records.reporters import installed

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "configs/quickstart.yaml"
REQUIREMENTS = ROOT / "requirements"


def test_the_base_install_is_without_the_optional_reporters_and_whole() -> None:
    """What a package of base.txt needs is in base.txt; what only W&B and SwanLab need is not."""
    base, extras = pins(REQUIREMENTS / "base.txt"), pins(REQUIREMENTS / "reporters.txt")
    assert {"wandb", "swanlab"} <= set(extras) and not set(base) & set(extras)
    assert needed(set(base)) == set(base)
    assert needed({"wandb", "swanlab"}) <= set(base) | set(extras)
    assert not [version for version, _ in base.values() if "b" in version or "rc" in version], "no beta"


def test_a_recipe_that_names_a_missing_reporter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(QUICKSTART, Config, ["logging.report_to=[tensorboard, wandb, swanlab]"])
    installed.check_installed(config.logging.report_to)
    monkeypatch.setattr(
        installed, "find_spec", lambda name: None if name == "wandb" else importlib.util.find_spec(name)
    )
    with pytest.raises(
        ConfigError, match=r"report_to names wandb, which is not installed.*requirements/reporters\.txt"
    ):
        installed.check_installed(config.logging.report_to)
    installed.check_installed(["tensorboard", "swanlab"])
    (finding,) = check_reporters(config)
    assert finding.status == "FAIL" and "leave them out" in finding.message


def test_the_doctor_reads_pins_with_hashes() -> None:
    assert [finding.status for finding in check_packages()] == ["OK"]


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ([], None),
        (["distributed.deepspeed=configs/deepspeed/zero2.json"], None),
        (["distributed.deepspeed=configs/deepspeed/zero3_offload.json"], "offload_optimizer in zero3_offload.json"),
    ],
)
def test_a_compiler_is_looked_for_where_something_is_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overrides: list[str], what: str | None
) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(QUICKSTART, Config, overrides)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    found = list(check_compiler(config))
    if what is None:
        assert found == []
        return
    assert found[0].status == "FAIL" and what in found[0].message and "no cc nor c++" in found[0].message
    for name in ("cc", "c++"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(stat.S_IRWXU)
    assert [finding.status for finding in check_compiler(config)] == ["OK"]


def test_the_trainers_image_has_a_compiler() -> None:
    text = (ROOT / "docker/trainer.Dockerfile").read_text()
    assert "g++" in text.split("FROM ${PYTHON_IMAGE}\n")[1]


@pytest.mark.parametrize(
    ("report", "options"),
    [
        ('"version": "2.13.0+cpu", "requires_dist": ["nvidia-cublas==1"]', f"--constraint={REQUIREMENTS}/cpu.txt"),
        ('"version": "2.13.0", "requires_dist": ["nvidia-cublas==1"]', f"--requirement={REQUIREMENTS}/cuda.txt"),
        ('"version": "2.13.0", "requires_dist": ["filelock"]', ""),
        ("", ""),  # no index: the installation says so
    ],
)
def test_the_build_of_torch_decides_what_else_is_installed(tmp_path: Path, report: str, options: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n[ -n '{report}' ] || exit 1\nprintf '%s' '{report}'\n")
    python.chmod(stat.S_IRWXU)
    for name, wanted_options in (("base.txt", options), ("services/hps.txt", options), ("services/rules.txt", "")):
        command = ["sh", str(ROOT / "scripts/torch_pins.sh"), str(python), str(REQUIREMENTS / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        assert done.stdout.strip() == wanted_options


def test_the_constraint_to_the_cpu_is_one_of_the_files_that_are_allowed() -> None:
    base, cpu = pins(REQUIREMENTS / "base.txt"), pins(REQUIREMENTS / "cpu.txt")
    assert list(cpu) == ["torch"] and cpu["torch"][0] == base["torch"][0]
    assert cpu["torch"][1] < base["torch"][1]


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("a-1-py3-none-any.whl", True),
        ("a-1.tar.gz", True),
        ("a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("a-1-cp312-cp312-manylinux_2_28_aarch64.whl", True),
        ("a-1-cp39-abi3-manylinux_2_28_x86_64.whl", True),
        ("a-1-cp310-cp310-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp314-cp314t-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp311-cp311-macosx_11_0_arm64.whl", False),
        ("a-1-cp311-cp311-win_amd64.whl", False),
        ("a-1-cp311-cp311-musllinux_1_2_x86_64.whl", False),
    ],
)
def test_hashes_are_of_files_that_can_be_installed(name: str, taken: bool) -> None:
    assert wanted(name) is taken


def test_hashes_are_written_beside_pins_and_known_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_requirements, "hashes", lambda name, version, label: {f"{name}{version}"})
    path = tmp_path / "some.txt"
    path.write_text("# why\n-r base.txt\n\na==1 \\\n    --hash=sha256:old\nb==2\n")
    hash_requirements.rewrite(path)
    text = (
        "# why\n-r base.txt\n\na==1 \\\n    --hash=sha256:a1 \\\n    --hash=sha256:old\nb==2 \\\n    --hash=sha256:b2\n"
    )
    assert path.read_text() == text
    assert pins(path) == {"a": ("1", {"a1", "old"}), "b": ("2", {"b2"})}


def test_the_command_refuses_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nreal = u.find_spec\nu.find_spec = lambda n, p=None: None if n == 'wandb' else real(n, p)\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "trainer",
            "train",
            str(QUICKSTART),
            "logging.report_to=[wandb]",
            f"output_dir={tmp_path}/o",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
        timeout=300,
    )
    assert done.returncode == 2 and "names wandb, which is not installed" in done.stderr
    assert not (tmp_path / "o").exists()
