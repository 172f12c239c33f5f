"""What is released: versions that agree, bounds made of the pins, a wheel with all it needs and nothing else."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from rewards import __version__
from scripts import bounds, release
from scripts.hash_requirements import REQUIREMENTS, needed, normal, pins
from tests.test_repo_hygiene import OPTIONAL, imported_names, packages_distributions, python_files

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BUILDS = find_spec("hatchling") is not None and find_spec("trove_classifiers") is not None


# --- versions and bounds


def test_the_version_is_the_same_wherever_it_is_written() -> None:
    assert set(release.other_versions().values()) == {release.version()} == {__version__}
    assert set(yaml.safe_load((ROOT / "CITATION.cff").read_text())) >= {
        "cff-version",
        "message",
        "title",
        "authors",
        "version",
    }


@pytest.mark.parametrize("text", ["1.2", "", "1.2.3.4", "one"])
def test_a_version_of_another_form_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards/__init__.py").write_text(f'__version__ = "{text}"\n')
    monkeypatch.setattr(release, "ROOT", tmp_path)
    with pytest.raises(release.ReleaseError, match=r"of the form 1\.2\.3"):
        release.version()


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.*)$", text, re.M)
    assert heads[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", head) for head in heads[1:])
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }


@pytest.mark.parametrize(
    ("name", "version", "bound"),
    [
        ("numpy", "2.3.5", "numpy>=2.3.5,<3"),
        ("httpx", "0.28.1", "httpx>=0.28.1,<0.29"),
        ("certifi", "2026.10.18", "certifi>=2026.10.18"),
        ("opencv-python-headless", "5.0.0.93", "opencv-python-headless>=5.0.0.93,<6"),
        ("torch", "2.13.0", "torch==2.13.0"),
    ],
)
def test_bounds_are_the_pin_and_the_next_version_that_may_break(name: str, version: str, bound: str) -> None:
    assert bounds.bounded(name, version) == bound


def test_pyproject_has_the_bounds_that_the_pins_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bounds", "--check"])
    assert bounds.main() == 0, capsys.readouterr().out
    made = bounds.requirements()
    assert PROJECT["project"]["dependencies"] == made.pop("") and PROJECT["project"]["optional-dependencies"] == made
    assert set(made) == release.EXTRAS


def test_bounds_that_are_not_what_the_pins_say_are_found_and_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "pyproject.toml"
    copy.write_text((ROOT / "pyproject.toml").read_text().replace("httpx>=", "httpx>"))
    monkeypatch.setattr(bounds, "PYPROJECT", copy)
    monkeypatch.setattr(sys, "argv", ["bounds", "--check"])
    assert bounds.main() == 1
    monkeypatch.setattr(sys, "argv", ["bounds"])
    assert bounds.main() == 0
    assert copy.read_text() == (ROOT / "pyproject.toml").read_text()


@functools.cache
def for_types(path: Path) -> set[int]:
    """The lines of a file that only a type checker reads."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    blocks = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")]
    return {line for block in blocks for line in range(block.lineno, (block.body[-1].end_lineno or block.lineno) + 1)}


def test_the_client_brings_no_torch_and_each_extra_what_its_packages_import() -> None:
    """What an installed package imports comes with it: with the base `rewards` and `wire`, with `services` the services,
    with `loadtest` the load test, with `train` all."""
    made = {extra: {re.split("[>=<]", each)[0] for each in entries} for extra, entries in bounds.requirements().items()}
    brought = {"": needed(made[""])}
    assert "torch" not in brought[""]
    brought["services"] = needed(made[""] | made["services"])
    brought["train"] = needed(made[""] | made["services"] | (made["train"] - {f"{bounds.DISTRIBUTION}[services]"}))
    brought["loadtest"] = needed(made[""] | made["loadtest"])
    owners = packages_distributions()
    needs = {
        "rewards": "",
        "rewards/plane": "services",  # the verb says so where they are missing
        "wire": "",
        "services": "services",
        "loadtest": "loadtest",
        "machine": "services",
        "trainer": "train",
    }
    missing = []
    for path in python_files(tests=False):
        parts = path.relative_to(ROOT).parts
        extra = needs.get("/".join(parts[:2]), needs.get(parts[0]))
        for line, top in [] if extra is None else imported_names(path):
            if line in for_types(path):
                continue
            if (
                top in sys.stdlib_module_names
                or top in needs
                or top in OPTIONAL - {"transformers", "peft", "redis", "deepspeed", "locust", "gevent"}
            ):
                continue
            if not {normal(owner) for owner in owners.get(top, [])} & brought[str(extra)]:
                missing.append(f"{path.relative_to(ROOT)}:{line}: {top} does not come with [{extra}]")
    assert missing == []


def test_the_backend_is_the_one_that_the_tests_build_with() -> None:
    (backend,) = PROJECT["build-system"]["requires"]
    name, _, version = backend.partition("==")
    assert pins(REQUIREMENTS / "dev.txt")[name][0] == version


# --- the wheel


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution and the wheel of what is committed."""
    if not BUILDS:
        pytest.skip("hatchling is not installed: `bash test.sh` installs it")
    if not (ROOT / ".git").exists():
        pytest.skip("no version control here, which says what belongs into a release")
    return release.build(tmp_path_factory.mktemp("dist"))


def test_a_release_has_every_file_and_nothing_else(built: tuple[Path, Path]) -> None:
    source, wheel = built
    assert release.check_source(source) == [] and release.check_wheel(wheel) == []
    inside = release.contents(wheel)
    assert {"rewards/files/configs/quickstart.yaml", "rewards/files/assets/quickstart/base.safetensors"} <= inside
    assert {"trainer/report/page.html.j2", "rewards/command.py"} <= inside
    wrong = r"^(tests|benchmarks|docs|outputs|scripts|docker)/|__pycache__|\.pyc$|/\.git|(^|/)test_"
    assert [name for name in inside if re.search(wrong, name)] == []


def test_what_does_not_belong_into_a_wheel_is_named(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel = tmp_path / built[1].name
    with zipfile.ZipFile(built[1]) as old, zipfile.ZipFile(wheel, "w") as new:
        for name in old.namelist():
            if name != "trainer/report/page.html.j2":
                new.writestr(name, old.read(name))
        new.writestr("tests/test_x.py", "")
    assert release.check_wheel(wheel) == [
        f"{wheel.name} lacks 1 files: trainer/report/page.html.j2",
        f"{wheel.name} has 1 files too many: tests/test_x.py",
    ]


def test_metadata_that_an_index_refuses_is_named() -> None:
    metadata = Message()
    for key, value in {"Name": "rewards", "Version": "0", "Requires-Dist": "torch==2.13.0", "Summary": "x"}.items():
        metadata[key] = value
    found = release.check_metadata(metadata)
    said = (
        "Name is rewards",
        "Version is 0",
        "License-Expression is None",
        "the extras are None",
        "torch is required",
        "description is missing",
    )
    assert all(any(each in sentence for sentence in found) for each in said), found


@pytest.mark.slow
def test_what_is_in_the_wheel_works_without_the_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Unpacked as pip would, and called from elsewhere: a recipe by its name, with all files that it reads; a service that it
    starts is ours, whatever lies in the folder."""
    with zipfile.ZipFile(built[1]) as packed:
        packed.extractall(tmp_path / "site")
    here = tmp_path / "here"
    here.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def typed(*words: str) -> str:
        command = [sys.executable, "-P", *words]
        return subprocess.run(
            command, cwd=here, env=environment, capture_output=True, text=True, timeout=600, check=True
        ).stdout

    assert typed("-m", "rewards", "--version") == f"rewards {__version__}\n"
    assert "quickstart " in typed("-m", "rewards", "recipes")
    program = (
        "import trainer\n"
        "from trainer.commands.recipes import checked\nfrom rewards.shipped import recipe\n"
        "config = checked(recipe('unified_rl_quickstart'))\n"
        "print(trainer.__file__, config.policy.pretrained, config.rewards.services['rules'].args['functions'], config.run_dir, sep='\\n')\n"
        "from trainer.processes.children import OURS\nprint(OURS)\n"
        "from pathlib import Path\nfrom trainer.config import RewardsConfig\nfrom trainer.rewards.launch import LocalServices\n"
        "rewards = RewardsConfig(launch='local', ready_timeout_s=500, services={'rules': {'module': 'rules'}}, columns={'color': {'service': 'rules', 'reward': 'color_match'}})\n"
        "with LocalServices(rewards, Path('logs'), notify=lambda line: None) as started:\n    print(list(started.urls))\n"
    )
    (here / "services").mkdir()
    (here / "services/__init__.py").write_text("raise ImportError('a checkout of another version')\n")
    files = f"{tmp_path}/site/rewards/files"
    assert typed("-c", program).splitlines() == [
        f"{tmp_path}/site/trainer/__init__.py",
        f"{files}/assets/unified_base",
        f"{files}/assets/unified_quickstart/rewards.py",
        "outputs/unified_rl_quickstart",
        "()",
        "['rules']",
    ]


def test_uncommitted_changes_and_differing_versions_are_not_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "changed", lambda: [" M README.md"])
    with pytest.raises(release.ReleaseError, match=r"1 files are not as they were committed \(M README\.md"):
        release.release(tmp_path, dirty=False, try_it=False)
    monkeypatch.setattr(release, "other_versions", lambda: {"CITATION.cff": "0.0.9"})
    with pytest.raises(release.ReleaseError, match=r"CITATION\.cff says 0\.0\.9"):
        release.release(tmp_path, dirty=True, try_it=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_wheel_that_is_installed_scores_and_says_what_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The script of the release as it is run by hand: an empty environment, packages from the index, a real service."""
    if not BUILDS:
        pytest.skip("hatchling is not installed: `bash test.sh` installs it")
    probe = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "sniffio==1.3.1",
        "-d",
        str(tmp_path / "probe"),
    ]
    if subprocess.run(probe, capture_output=True, timeout=300, check=False).returncode != 0:
        pytest.skip("no package index can be reached")
    assert release.main(["--output", str(tmp_path / "dist"), "--dirty"]) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    assert "all of them and nothing else" in said and "$ rewards score http://127.0.0.1:" in said
    assert re.search(r"^score (1\.0|0\.9)", said, re.M) and re.search(r"^disc\.png +(1|0\.9\d*)$", said, re.M), said
