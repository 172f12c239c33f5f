"""Writes into pyproject.toml what an installed package needs, by the pins that the tests ran with.

    python -m scripts.bounds            rewrites `dependencies` and the extras
    python -m scripts.bounds --check    says whether they are what the pins say

A version is bounded from below by the pin, the only one that was tested, and from above by the next that may break: of 2.3.5
that is 3, of 0.28.1 it is 0.29. Versions that are dates have no upper bound. torch is exact, as in base.txt.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from scripts.hash_requirements import REQUIREMENTS, names, normal, pins

PYPROJECT = REQUIREMENTS.parent / "pyproject.toml"
DISTRIBUTION = "rewards-as-services"
# What the command `rewards` and the client (wire/) import. Everything that is installed installs these, so no torch.
CLIENT = ("certifi", "httpx", "pillow", "pydantic", "pyyaml", "sniffio")
LOADTEST = ("locust", "tqdm")  # what loadtest/ imports beside
_MADE = re.compile(r"^dependencies = .*?(?=^\[project\.scripts\])", re.M | re.S)


def bounded(name: str, version: str) -> str:
    """A requirement that a package's metadata can make of a pin."""
    if name == "torch":
        return f"{name}=={version}"
    major, minor = (int(part) for part in version.split(".")[:2])
    if major >= 2000:
        return f"{name}>={version}"
    return f"{name}>={version},<{major + 1}" if major else f"{name}>={version},<0.{minor + 1}"


def named(path: Path) -> list[str]:
    """What a requirements file names for itself, above what those packages need."""
    head = path.read_text(encoding="utf-8").partition("# Needed by the packages above.")[0]
    return [normal(name) for name in re.findall(r"^([a-zA-Z][\w.-]*)==", head, re.M)]


def requirements() -> dict[str, list[str]]:
    """What each extra installs, by its name; "" is what is installed without any."""
    services = set().union(*(names(path) for path in (REQUIREMENTS / "services").glob("*.in"))) - set(CLIENT)
    train = set(named(REQUIREMENTS / "base.txt")) - services - set(CLIENT)
    groups = {
        "": set(CLIENT),
        "client": set(),
        "services": services,
        "train": train,
        "loadtest": set(LOADTEST),
        "reporters": set(named(REQUIREMENTS / "reporters.txt")),
    }
    known = pins(REQUIREMENTS / "dev.txt") | pins(REQUIREMENTS / "base.txt") | pins(REQUIREMENTS / "reporters.txt")
    made = {extra: [bounded(name, known[name][0]) for name in sorted(group)] for extra, group in groups.items()}
    made["train"].insert(0, f"{DISTRIBUTION}[services]")  # a run starts its services itself
    return made


def written() -> str:
    """The lines of pyproject.toml."""

    def listed(name: str, entries: list[str]) -> list[str]:
        return [f"{name} = [", *(f'  "{entry}",' for entry in entries), "]"] if entries else [f"{name} = []"]

    made = requirements()
    lines = [*listed("dependencies", made.pop("")), "", "[project.optional-dependencies]"]
    for extra, entries in made.items():
        lines += listed(extra, entries)
    return "\n".join([*lines, "", ""])


def main() -> int:
    text = PYPROJECT.read_text(encoding="utf-8")
    new = _MADE.sub(lambda _: written(), text)
    if sys.argv[1:] == ["--check"]:
        print("as the pins say" if new == text else "pyproject.toml is not what the pins say: python -m scripts.bounds")
        return int(new != text)
    PYPROJECT.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
