"""What the doctor found: a status, a sentence, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["OK", "WARN", "NOT CHECKED", "FAIL"]
_COLORS = {"OK": "\033[32m", "WARN": "\033[33m", "NOT CHECKED": "\033[36m", "FAIL": "\033[1;31m"}
_INDENT = " " * 23


@dataclass(frozen=True)
class Finding:
    """OK: it was looked at and is right. NOT CHECKED: the message says what could not be looked at, and why.

    `remedy` is what to do; a WARN or FAIL always has one, here or in its message."""

    area: str
    status: Status
    message: str
    remedy: str = ""


def as_row(finding: Finding, *, color: bool) -> str:
    """A line of the table, with the remedy on a line of its own."""
    status = f"{finding.status:<11}"
    if color:
        status = f"{_COLORS[finding.status]}{status}\033[0m"
    message = finding.message.replace("\n", f"\n{_INDENT}")
    remedy = f"\n{_INDENT}-> {finding.remedy}" if finding.remedy else ""
    return f"{status}  {finding.area:<9} {message}{remedy}"


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    failed, warned, open_ = (sum(f.status == status for f in findings) for status in ("FAIL", "WARN", "NOT CHECKED"))
    unchecked = f", {open_} not checked" if open_ else ""
    if failed:
        return f"{failed} to mend before this can run, {warned} to know about{unchecked}"
    if warned:
        return f"nothing found that stops a start, {warned} to know about{unchecked}"
    return f"ready to train{unchecked}"


def to_json(findings: Sequence[Finding]) -> str:
    """`{"ok": bool, "findings": [{"area", "status", "message", "remedy"}]}`; ok: nothing failed, nothing is unchecked."""
    ok = all(finding.status in ("OK", "WARN") for finding in findings)
    return json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}, indent=1, ensure_ascii=False)
