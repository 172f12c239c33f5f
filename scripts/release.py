"""Builds what is released, looks at it, and tries it in an empty environment.

    python -m scripts.release                    into dist/
    python -m scripts.release --output FOLDER    elsewhere
    python -m scripts.release --no-try           without the environment, which needs a package index

What is committed is built: the source distribution from the files under version control, the wheel from the source
distribution, so that each is whole. Looked at: that the wheel has every file of the packages, of `configs/` and of `assets/`
and nothing else, its metadata, its size, and that the version is the same wherever it is written. Tried: `rewards`, and a
client that has an image scored by a service of this checkout.
"""

from __future__ import annotations

import argparse
import email
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("rewards", "machine", "wire", "services", "loadtest", "trainer")
SHIPPED = ("configs", "assets")  # in a wheel: in rewards/files
BESIDE = (
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    ".gitignore",
    "PKG-INFO",
)  # in a source distribution
EXTRAS = {"client", "services", "train", "loadtest", "reporters"}
MAX_MB = 60  # an index takes 100 MB


class ReleaseError(Exception):
    """What must not be released as it is; the message says why."""


def version() -> str:
    """The version in `rewards/__init__.py`."""
    found = re.search(r'^__version__ = "([^"]+)"', (ROOT / "rewards/__init__.py").read_text(encoding="utf-8"), re.M)
    if found is None or not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", found[1]):
        raise ReleaseError("rewards/__init__.py has no __version__ of the form 1.2.3")
    return found[1]


def other_versions() -> dict[str, str]:
    """The version as other files say it, by the file."""
    places = {
        "CHANGELOG.md": r"^## \[(\d[^\]]*)\]",  # the newest
        "CITATION.cff": r"^version: (\S+)$",
        "docker/service.Dockerfile": r"^ARG VERSION=(\S+)$",
        "docker/trainer.Dockerfile": r"^ARG VERSION=(\S+)$",
    }
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in places}
    found = {name: re.search(pattern, texts[name], re.M) for name, pattern in places.items()}
    return {name: "none" if match is None else match[1] for name, match in found.items()}


def committed(*folders: str) -> set[str]:
    """The files that were committed in some folders, as paths from the root."""
    command = ["git", "ls-tree", "-r", "-z", "--name-only", "HEAD", "--", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if name}


def changed() -> list[str]:
    """What is not as it was committed."""
    done = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def build(output: Path) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built of it. No network is needed."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "tree"
        clean.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(clean)], input=archive, check=True)
        source = _hatch(clean, "sdist", output)
        with tarfile.open(source) as packed:
            packed.extractall(folder, filter="data")
        wheel = _hatch(Path(folder) / source.name.removesuffix(".tar.gz"), "wheel", output)
    return source, wheel


def _hatch(tree: Path, target: str, output: Path) -> Path:
    """Build one of the two with the backend that pyproject.toml names, and return it. What is there of the same name goes."""
    name = f"rewards_as_services-{version()}" + {"sdist": ".tar.gz", "wheel": "-py3-none-any.whl"}[target]
    (output / name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(output)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (output / name).is_file():
        raise ReleaseError(f"{' '.join(command)} built no {name}:\n{done.stdout}{done.stderr}")
    return output / name


def contents(wheel: Path) -> set[str]:
    """The files in a wheel."""
    with zipfile.ZipFile(wheel) as packed:
        return {name for name in packed.namelist() if not name.endswith("/")}


def check_wheel(wheel: Path) -> list[str]:
    """What is wrong with a wheel, a sentence each."""
    info = f"rewards_as_services-{version()}.dist-info"
    wanted = committed(*PACKAGES) | {f"rewards/files/{name}" for name in committed(*SHIPPED)}
    wanted |= {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    problems = _compare(wheel, contents(wheel), wanted)
    if wheel.stat().st_size > MAX_MB * 1_000_000:
        problems.append(f"{wheel.name} has {wheel.stat().st_size / 1e6:.0f} MB, more than {MAX_MB}")
    with zipfile.ZipFile(wheel) as packed:
        metadata = email.message_from_bytes(packed.read(f"{info}/METADATA"))
        commands = packed.read(f"{info}/entry_points.txt").decode()
    if "rewards = rewards.command:main" not in commands:
        problems.append(f"{wheel.name} has no command rewards: {commands}")
    return problems + check_metadata(metadata)


def check_source(source: Path) -> list[str]:
    """What is wrong with a source distribution, a sentence each."""
    top = source.name.removesuffix(".tar.gz")
    with tarfile.open(source) as packed:
        found = {name.removeprefix(f"{top}/") for name in packed.getnames() if not packed.getmember(name).isdir()}
    return _compare(source, found, committed(*PACKAGES, *SHIPPED) | set(BESIDE))


def _compare(path: Path, found: set[str], wanted: set[str]) -> list[str]:
    lacks, has = sorted(wanted - found), sorted(found - wanted)
    problems = [f"{path.name} lacks {len(lacks)} files: {', '.join(lacks[:5])}"] if lacks else []
    return problems + ([f"{path.name} has {len(has)} files too many: {', '.join(has[:5])}"] if has else [])


def check_metadata(metadata: Message) -> list[str]:
    """What an index or an installer would refuse, or an owner regret."""
    wanted = {"Name": "rewards-as-services", "Version": version(), "License-Expression": "Apache-2.0"}
    wanted |= {"Requires-Python": ">=3.11", "Description-Content-Type": "text/markdown"}
    problems = [
        f"metadata: {key} is {metadata[key]}, not {value}" for key, value in wanted.items() if metadata[key] != value
    ]
    if set(metadata.get_all("Provides-Extra", [])) != EXTRAS:
        problems.append(f"metadata: the extras are {metadata.get_all('Provides-Extra')}, not {sorted(EXTRAS)}")
    always = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    if [each for each in always if each.startswith("torch")]:
        problems.append("metadata: torch is required without an extra")
    if not metadata["Summary"] or len(metadata["Summary"]) > 512 or not str(metadata.get_payload() or "").strip():
        problems.append("metadata: the summary or the description is missing")
    return problems


def try_in_an_empty_environment(wheel: Path) -> None:
    """Install `wheel[client]` into a fresh environment, run the command, and have an image scored by a real service."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
        python, command = f"{folder}/venv/bin/python", f"{folder}/venv/bin/rewards"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[client]"]
        _say(f"$ pip install '{wheel.name}[client]'")
        subprocess.run(pip, check=True, env=_bare())
        for words in (["--version"], ["--help"], ["recipes"]):
            _run([command, *words], folder)
        _check_score(python, command, folder)


FIVE_LINES = """\
import sys
from wire.client import RewardClient
with RewardClient(sys.argv[1]) as client:
    (row,) = client.score(images=["disc.png"], prompts="a disc in red", reward="color_match")
print(f"score {row.score:.3f}")
"""


def _check_score(python: str, command: str, folder: str) -> None:
    """A red disc and a prompt that asks for one, scored by the rules service of this checkout: by five lines and by the command."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((12, 12, 52, 52), fill=(220, 20, 20))
    image.save(f"{folder}/disc.png")
    service = [sys.executable, "-m", "services.rules", "--port", "0", "--log-level", "warning"]
    with subprocess.Popen(service, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            url = next(line for line in running.stdout if " listening on " in line).split()[-1]
            next(line for line in running.stdout if line.strip().endswith(" ready"))
            print(FIVE_LINES.rstrip())
            for words in (
                [python, "-c", FIVE_LINES, url],
                [command, "score", url, "disc.png", "--prompt", "a disc in red", "--reward", "color_match"],
            ):
                print(said := _run(words, folder), end="")
                if float(said.split()[-1]) < 0.9:
                    raise ReleaseError(f"the score of a red disc that was asked for is below .9: {said}")
            loaded = _run([python, "-c", "import sys, wire.client; print('torch' in sys.modules)"], folder)
            if loaded.strip() != "False":
                raise ReleaseError("importing wire.client imports torch")
        finally:
            running.terminate()


def _run(command: Sequence[str], folder: str) -> str:
    """What a command of the empty environment prints, typed outside the checkout. Raises ReleaseError where it fails."""
    if "-c" not in command:
        _say(f"$ rewards {shlex.join(command[1:])}".replace(f"{folder}/", ""))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=_bare())
    if done.returncode != 0:
        raise ReleaseError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _bare() -> dict[str, str]:
    """The environment without what would let the empty one find this checkout's packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def _say(line: str) -> None:
    print(f"[release] {line}", flush=True)


def release(output: Path, *, dirty: bool, try_it: bool) -> None:
    """Build, look and try. Raises ReleaseError with all that is wrong."""
    wrong = [f"{name} says {each}" for name, each in other_versions().items() if each != version()]
    if wrong:
        raise ReleaseError(f"rewards/__init__.py says version {version()}; {'; '.join(wrong)}")
    if not dirty and (files := changed()):
        raise ReleaseError(
            f"{len(files)} files are not as they were committed ({files[0].strip()}, ...): commit them first"
        )
    source, wheel = build(output)
    for path in (source, wheel):
        _say(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    if problems := check_source(source) + check_wheel(wheel):
        raise ReleaseError("\n".join(problems))
    _say(f"{len(contents(wheel))} files in the wheel, all of them and nothing else")
    if try_it:
        try_in_an_empty_environment(wheel.resolve())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.release", description="Build, look at and try a release.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="Where it is written (default: dist/).")
    parser.add_argument("--dirty", action="store_true", help="What was committed, also where files were changed since.")
    parser.add_argument(
        "--no-try", action="store_true", help="Without an empty environment, which needs a package index."
    )
    args = parser.parse_args(argv)
    try:
        release(args.output.absolute(), dirty=args.dirty, try_it=not args.no_try)
    except ReleaseError as error:
        print(f"[release] error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
