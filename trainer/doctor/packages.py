"""Installed packages against the pins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement

from trainer.config import Config, ConfigError
from trainer.doctor.findings import Finding
from trainer.records.reporters.installed import check_installed

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements" / "base.txt"
_DISTRIBUTION = "rewards-as-services"


def check_packages(requirements: Path = REQUIREMENTS) -> Iterator[Finding]:
    """Installed versions against the pins."""
    if not requirements.is_file():
        yield _installed()
        return
    lines = requirements.read_text(encoding="utf-8").splitlines()
    pins = dict(line.removesuffix("\\").strip().split("==") for line in lines if "==" in line and line[0] not in "# ")
    missing, other = [], []
    for name, pinned in pins.items():
        try:
            installed = version(name).partition("+")[0]  # torch's 2.13.0+cpu is 2.13.0
        except PackageNotFoundError:
            missing.append(f"{name} {pinned}")
            continue
        if installed != pinned:
            other.append(f"{name} {installed} (pinned: {pinned})")
    remedy = f"pip install -r {requirements}, or `bash train.sh`, which sets up an environment of its own"
    if missing:
        yield Finding("packages", "FAIL", f"not installed: {', '.join(missing)}", remedy)
    if other:
        yield Finding("packages", "WARN", f"other versions than those tested: {', '.join(other)}", remedy)
    if not missing and not other:
        python = ".".join(map(str, sys.version_info[:3]))
        yield Finding("packages", "OK", f"all {len(pins)} packages as pinned, Python {python}")


def _installed() -> Finding:
    """Outside a checkout: installed versions against the bounds of the distribution that this program is of."""
    try:
        wanted = [Requirement(each) for each in distribution(_DISTRIBUTION).requires or []]
    except PackageNotFoundError:
        return Finding(
            "packages", "WARN", f"no pins at {REQUIREMENTS}", "run the doctor from a checkout or an installation"
        )
    problems, count = [], 0
    for each in wanted:
        if each.name == _DISTRIBUTION or (
            each.marker and not any(each.marker.evaluate({"extra": e}) for e in ("train", "services"))
        ):
            continue
        count += 1
        try:
            installed = version(each.name)
        except PackageNotFoundError:
            problems.append(f"{each.name} is not installed")
            continue
        if not each.specifier.contains(installed, prereleases=True):
            problems.append(f"{each.name} {installed} (wanted: {each.specifier})")
    if problems:
        return Finding("packages", "FAIL", ", ".join(problems), f"pip install --upgrade '{_DISTRIBUTION}[train]'")
    python = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        "packages",
        "OK",
        f"all {count} packages as {_DISTRIBUTION} {version(_DISTRIBUTION)} wants them, Python {python}",
    )


def check_reporters(config: Config) -> Iterator[Finding]:
    """Whether the optional reporters that the recipe names are installed."""
    try:
        check_installed(config.logging.report_to)
    except ConfigError as error:
        yield Finding("packages", "FAIL", str(error))
