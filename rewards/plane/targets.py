"""Whom to ask: one address of a reward service, and what is known of it before it has said anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class SourceError(ValueError):
    """What was named on the command line cannot be asked; the message says why, and what to do."""


@dataclass(frozen=True)
class Target:
    """One address.

    Attributes:
        group: the service's name in the recipe or compose file; several addresses of one service have the same.
        url: base URL, without its last slash; empty where there is none, which `absent` explains.
        token, no_token: what is sent as a bearer token, or why there is none to send.
        ca_file: authorities (PEM) to believe beside the public ones.
        expects: the service that is to be there, such as ocr; None: any.
        columns: names of the recipe's rewards that it scores, each with what it is called at the service (None: its default).
        optional: it need not run, as what belongs to a profile of compose that nobody chose; `absent` says which.
    """

    group: str
    url: str = ""
    token: str | None = field(default=None, repr=False)
    no_token: str = ""
    ca_file: Path | None = None
    expects: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    optional: bool = False
    absent: str = ""


@dataclass(frozen=True)
class Plan:
    """All that is asked. `title`: what was named. `notes`: what of it is not asked, and why."""

    title: str
    targets: tuple[Target, ...]
    notes: tuple[str, ...] = ()
