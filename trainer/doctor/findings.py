"""What the doctor found: a status, a sentence, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["OK", "WARN", "FAIL"]
_COLORS = {"OK": "\033[32m", "WARN": "\033[33m", "FAIL": "\033[1;31m"}


@dataclass(frozen=True)
class Finding:
    """`remedy` is what to do; a WARN or FAIL always has one, here or in its message."""

    area: str
    status: Status
    message: str
    remedy: str = ""


def as_row(finding: Finding, *, color: bool) -> str:
    """A line of the table, with the remedy on a line of its own."""
    status = f"{finding.status:<4}"
    if color:
        status = f"{_COLORS[finding.status]}{status}\033[0m"
    message = finding.message.replace("\n", f"\n{'':16}")
    remedy = f"\n{'':16}-> {finding.remedy}" if finding.remedy else ""
    return f"{status}  {finding.area:<9} {message}{remedy}"


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    failed, warned = (sum(f.status == status for f in findings) for status in ("FAIL", "WARN"))
    if failed:
        return f"{failed} to mend before this can run, {warned} to know about"
    return f"ready to train, {warned} to know about" if warned else "ready to train"


def to_json(findings: Sequence[Finding]) -> str:
    """`{"ok": bool, "findings": [{"area", "status", "message", "remedy"}]}`."""
    ok = all(finding.status != "FAIL" for finding in findings)
    return json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}, indent=1, ensure_ascii=False)
