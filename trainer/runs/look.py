"""What all pages share: templates, style and script, and how pages of a server and of an export name one another."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trainer.records.numbers import plain
from trainer.report import charts
from trainer.report.assets import base_style, breakable, policy

_FOLDER = Path(__file__).parent / "templates"


class Links(Protocol):
    """Addresses of pages, from a page that lies beside `runs()`."""

    def runs(self, **query: Any) -> str: ...
    def run(self, name: str) -> str: ...
    def gallery(self, name: str) -> str: ...
    def compare(self, names: Sequence[str]) -> str: ...
    def image(self, run: str, path: str) -> str: ...
    def file(self, run: str, path: str) -> str: ...
    def download(self, run: str, what: str, kind: str) -> str: ...
    def events(self, run: str = "") -> str: ...
    def charts(self, run: str, axis: str) -> str: ...
    def enter(self) -> str: ...


class ServedLinks:
    """Of the server. Names of runs are parts of paths; what is chosen on a page is a query."""

    def runs(self, **query: Any) -> str:
        return "/" + _query(query)

    def run(self, name: str) -> str:
        return f"/run/{quote(name)}"

    def gallery(self, name: str) -> str:
        return f"/gallery/{quote(name)}"

    def compare(self, names: Sequence[str]) -> str:
        return "/compare" + _query({"run": list(names)})

    def image(self, run: str, path: str) -> str:
        return f"/image/{quote(run)}{_query({'path': path})}"

    def file(self, run: str, path: str) -> str:
        return f"/file/{quote(run)}{_query({'path': path})}"

    def download(self, run: str, what: str, kind: str) -> str:
        return f"/download/{what}.{kind}{_query({'run': run} if run else {})}"

    def events(self, run: str = "") -> str:
        return "/events" + _query({"run": run} if run else {})

    def charts(self, run: str, axis: str) -> str:
        return f"/charts/{quote(run)}{_query({'x': axis})}"

    def enter(self) -> str:
        return "/enter"


@dataclass(frozen=True)
class Look:
    """How a page is dressed. `live`: it is served, and follows the runs."""

    links: Links
    head: Markup
    tail: Markup
    live: bool


@cache
def style() -> str:
    return base_style() + (_FOLDER / "page.css").read_text(encoding="utf-8") + charts.style()


@cache
def script() -> str:
    return charts.script() + (_FOLDER / "page.js").read_text(encoding="utf-8")


@cache
def asset_name(kind: str) -> str:
    """A name that changes with the content, so that a browser may keep it for ever."""
    text = style() if kind == "css" else script()
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.{kind}"


@cache
def served() -> Look:
    """With style and script as files of the server: its policy admits nothing else."""
    head = Markup('<link rel="stylesheet" href="/assets/{}">').format(asset_name("css"))
    return Look(ServedLinks(), head, Markup('<script src="/assets/{}"></script>').format(asset_name("js")), live=True)


def inline(links: Links) -> Look:
    """With style and script in the page, admitted by their hashes, so that it works from a file."""
    allowed = policy(style(), script(), "'self' file: data:")
    head = Markup('<meta http-equiv="Content-Security-Policy" content="{}"><style>{}</style>').format(
        allowed, Markup(style())
    )
    return Look(links, head, Markup("<script>{}</script>").format(Markup(script())), live=False)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["number"] = number
    environment.filters["breakable"] = breakable
    return environment


def render(template: str, look: Look, **context: Any) -> str:
    """A page of a template. Everything is escaped but what is `Markup`."""
    return _templates().get_template(template).render(look=look, links=look.links, **context)


def number(value: float) -> str:
    """A score in a page."""
    return "no score" if math.isnan(value) else plain(value)


def _query(given: dict[str, Any]) -> str:
    kept = {key: value for key, value in given.items() if value not in ("", None, [])}
    return f"?{urlencode(kept, doseq=True)}" if kept else ""
