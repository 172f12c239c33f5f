"""Installed packages against the pins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainer.config import Config, ConfigError
from trainer.doctor.findings import Finding
from trainer.records.reporters.installed import check_installed

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements" / "base.txt"


def check_packages(requirements: Path = REQUIREMENTS) -> Iterator[Finding]:
    """Installed versions against the pins."""
    if not requirements.is_file():
        yield Finding("packages", "WARN", f"no pins at {requirements}", "run the doctor from a checkout of the project")
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


def check_reporters(config: Config) -> Iterator[Finding]:
    """Whether the optional reporters that the recipe names are installed."""
    try:
        check_installed(config.logging.report_to)
    except ConfigError as error:
        yield Finding("packages", "FAIL", str(error))
