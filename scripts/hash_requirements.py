"""Writes the hashes of the pins into requirement files, and the services' files from their lists of names.

    python scripts/hash_requirements.py                        every file of requirements/
    python scripts/hash_requirements.py requirements/dev.txt   one

Asks the package index that pip is configured with, by pip's own finder, for the files of each pinned version: those for
Linux on x86-64 and ARM and CPython 3.11 to 3.14, those for any platform, and the sources. Hashes that a file has already
stay while the pin does: they may be of builds on another index, as torch's for a CPU are.

`requirements/services/NAME.in` has the packages that a service imports; `NAME.txt` has them and all that they need, with
base.txt's versions, by the metadata of what is installed here.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements"
_WHEEL = re.compile(r"-(?P<python>[\w.]+)-(?P<abi>[\w.]+)-(?P<platform>[\w.]+)\.whl$")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(filename: str) -> bool:
    """Whether a file can be installed on what this project supports."""
    found = _WHEEL.search(filename)
    if found is None:
        return filename.endswith((".tar.gz", ".zip"))
    platforms = re.search(r"(^|\.)(any$|(manylinux|linux)\w*(x86_64|aarch64))", found["platform"])
    pythons = re.search(r"(^|\.)(py3|py2\.py3|cp31[1-4])|abi3", f"{found['python']}.{found['abi']}")
    return bool(platforms and pythons) and not re.search(r"cp3\d+t\b", found["abi"])


@cache
def _finder() -> Any:
    from pip._internal.commands import create_command

    command: Any = create_command("download")
    options, _ = command.parse_args(["x"])
    return command._build_package_finder(options, command._build_session(options), ignore_requires_python=True)


def links(name: str) -> Iterator[Any]:
    """Every file that the index has of a package."""
    from pip._internal.index.collector import parse_links

    collector = _finder()._link_collector
    sources = collector.collect_sources(name, candidates_from_page=lambda _: [])
    for source in filter(None, [*sources.find_links, *sources.index_urls]):
        yield from source.file_links()
        page = None if source.link is None else collector.fetch_response(source.link)
        yield from [] if page is None else parse_links(page)


def hashes(name: str, version: str, label: str = "") -> set[str]:
    """sha256 of the wanted files of one version, those with a local label included; or only those with the given one."""
    found = set()
    for link in links(name):
        stem = link.filename.removesuffix(".tar.gz").removesuffix(".zip")
        parts = stem.split("-") if link.filename.endswith(".whl") else stem.rsplit("-", 1)
        named = len(parts) > 1 and normal(parts[0]) == normal(name) and parts[1].partition("+")[0] == version
        if named and wanted(link.filename) and label in parts[1]:
            if link.hash_name == "sha256":
                found.add(str(link.hash))
            elif link.is_file:
                found.add(hashlib.sha256(Path(link.file_path).read_bytes()).hexdigest())
    return found


def pins(path: Path) -> dict[str, tuple[str, set[str]]]:
    """Version and hashes by normal name, of the lines `name==version`."""
    found: dict[str, tuple[str, set[str]]] = {}
    text = path.read_text(encoding="utf-8").replace("\\\n", " ") if path.exists() else ""
    for line in text.splitlines():
        if match := re.match(r"([\w.-]+)==([^\s;]+)", line):
            found[normal(match[1])] = match[2], set(re.findall(r"--hash=sha256:(\w+)", line))
    return found


def block(name: str, version: str, known: set[str], label: str) -> str:
    """A pin with its hashes. Raises ValueError where the index has no file of it."""
    found = known | hashes(name, version, label)
    if not found:
        raise ValueError(f"{name}=={version}: the index has no such file")
    return " \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{each}" for each in sorted(found))])


def rewrite(path: Path) -> None:
    """Give each pin of a file its hashes; comments and other lines stay."""
    known, label = pins(path), "+cpu" if path.name == "cpu.txt" else ""
    lines = []
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        match = re.match(r"([\w.-]+)==([^\s;]+)", line)
        lines.append(line if match is None else block(match[1], match[2], known[normal(match[1])][1], label))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def names(path: Path) -> set[str]:
    """The names in a list of a service, with those of the lists it includes."""
    found: set[str] = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found |= names(path.with_name(line.removeprefix("-r ")))
        elif line and not line.startswith("#"):
            found.add(normal(line))
    return found


def needed(roots: set[str]) -> set[str]:
    """`roots` and all that they need, by the metadata of what is installed."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        if (name := normal(waiting.pop())) in found:
            continue
        found.add(name)
        try:
            requirements = map(Requirement, distribution(name).requires or [])
        except PackageNotFoundError:
            continue
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def write_service(path: Path) -> None:
    """`NAME.txt` of `NAME.in`, from base.txt as it is."""
    base = pins(REQUIREMENTS / "base.txt")
    head = f"# Made of {path.name} and base.txt by scripts/hash_requirements.py."
    lines = [head]
    for name in sorted(needed(names(path))):
        version, known = base[name]
        lines.append(" \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{each}" for each in sorted(known))]))
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    given = [Path(name) for name in sys.argv[1:]]
    for path in given or sorted(REQUIREMENTS.glob("*.txt")):
        print(f"[hashes] {path}", flush=True)
        rewrite(path)
    for path in [] if given else sorted((REQUIREMENTS / "services").glob("*.in")):
        if path.name != "kit.in":
            print(f"[hashes] {path.with_suffix('.txt')}", flush=True)
            write_service(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
