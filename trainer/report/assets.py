"""Style and script of the report, and what it shares with the runs page."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from markupsafe import Markup, escape

from trainer.report.charts import style

_FOLDER = Path(__file__).parent


@cache
def base_style() -> str:
    """Colours, letters and tables of every page."""
    return (_FOLDER / "base.css").read_text(encoding="utf-8")


@cache
def report_style() -> str:
    return base_style() + (_FOLDER / "style.css").read_text(encoding="utf-8") + style()


def breakable(name: str) -> Markup:
    """A name that may go on in the next line behind its `_` and `/`, where there is no room: better than anywhere."""
    return Markup("<wbr>").join(map(escape, re.split(r"(?<=[_/])", name)))


@cache
def digest(text: str) -> str:
    """SHA-256 as policies have it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def policy(style: str, script: str, images: str) -> str:
    """A policy for a page that carries its one style and its one script: nothing else runs, and nothing is asked of anybody.

    Args:
        images: where images may come from, as policies name it.
    """
    return (
        f"default-src 'none'; style-src 'sha256-{digest(style)}'; script-src 'sha256-{digest(script)}'; "
        f"img-src {images}; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
