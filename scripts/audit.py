"""Looks up every pinned requirement in the advisory databases: `make audit`. Never takes "not found" for "clean".

pip-audit skips a package that its database does not know and still ends with "No known vulnerabilities found"; behind a
mirror of the package index that is all of them. Here a package counts as checked only if a database answered for it.

Exit status: 0 all are checked and clean; 1 a vulnerability is known; 3 not all could be checked.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLEAN, VULNERABLE, UNCHECKED = 0, 1, 3
_SHOWN = 10


@dataclass
class Findings:
    """What the databases said: packages they answered for, and vulnerabilities as printable lines."""

    checked: set[str] = field(default_factory=set)
    vulnerable: dict[str, str] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def add(self, report: dict[str, Any]) -> None:
        """Take in a pip-audit report."""
        for package in report["dependencies"]:
            if "skip_reason" in package:
                continue
            self.checked.add(package["name"])
            for vuln in package["vulns"]:
                fixed = ", ".join(vuln["fix_versions"]) or "no version yet"
                known = f"{package['name']} {package['version']}: {vuln['id']}, fixed in {fixed}"
                self.vulnerable[f"{package['name']} {vuln['id']}"] = known


def pinned(path: Path) -> dict[str, str]:
    """The `name==version` lines of a requirements file, by name."""
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    pins = (line.removesuffix("\\").rstrip() for line in lines if line and not line.startswith(("#", "-")))
    return {re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower(): pin for pin in pins}


def ask(path: Path, *service: str) -> tuple[dict[str, Any] | None, str]:
    """pip-audit's report from one service, or None and the reason why there is none."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json", "--timeout", "15"]
    command = [sys.executable, "-m", "pip_audit", "-r", str(path), *options, *service]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout), ""
    except ValueError:
        reason = done.stderr.strip().splitlines() or ["it said nothing"]
        return None, reason[-1][-300:]


def main() -> int:
    parser = argparse.ArgumentParser(description="Look up the pinned requirements in advisory databases.")
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements" / "base.txt", help="file of pins")
    parser.add_argument(
        "--osv-url", default="https://api.osv.dev/v1/query", help="asked about what PyPI did not answer"
    )
    parser.add_argument("--only-osv", action="store_true", help="do not ask PyPI")
    parser.add_argument(
        "--allow-unreachable", action="store_true", help="only a known vulnerability is a failure, not a missing answer"
    )
    options = parser.parse_args()
    wanted, findings = pinned(options.requirements), Findings()
    services = [("-s", "osv", "--osv-url", options.osv_url)]
    if not options.only_osv:
        services.insert(0, ("-s", "pypi"))
    for service in services:
        if wanted.keys() <= findings.checked:
            break
        report, trouble = ask(options.requirements, *service)
        if report is None:
            findings.troubles.append(f"{service[1]}: {trouble}")
        else:
            findings.add(report)
    return verdict(wanted, findings, options.allow_unreachable)


def verdict(wanted: dict[str, str], findings: Findings, allow_unreachable: bool) -> int:
    """Print what is known and what is not; the exit status."""
    for line in findings.vulnerable.values():
        print(f"[audit] VULNERABLE {line}")
    unchecked = sorted(wanted.keys() - findings.checked)
    print(f"[audit] {len(wanted) - len(unchecked)} of {len(wanted)} packages checked")
    if unchecked:
        more = f" and {len(unchecked) - _SHOWN} more" if len(unchecked) > _SHOWN else ""
        print(f"[audit] NOT CHECKED, no advisory database answered for: {', '.join(unchecked[:_SHOWN])}{more}")
        for trouble in findings.troubles:
            print(f"[audit]   {trouble}")
        print("[audit] run it again where https://pypi.org or https://api.osv.dev can be reached")
    if findings.vulnerable:
        return VULNERABLE
    return UNCHECKED if unchecked and not allow_unreachable else CLEAN


if __name__ == "__main__":
    sys.exit(main())
