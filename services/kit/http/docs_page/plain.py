"""The OpenAPI document as plain HTML, for who has no scripts: every route with its answers, and every schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any


def render_plain(tree: Mapping[str, Any]) -> str:
    """The inside of a page."""
    routes = "".join(
        f"<h2 id='{escape(path)}'>{escape(method.upper())} {escape(path)}</h2><p>{escape(about['summary'])}. "
        f"{escape(about.get('description', ''))}</p>"
        f"<ul>{''.join(_answer(status, answer) for status, answer in about['responses'].items())}</ul>"
        for path, methods in tree["paths"].items()
        for method, about in methods.items()
    )
    schemas = "".join(
        f"<details><summary>{escape(name)}</summary><pre tabindex='0'>{escape(json.dumps(schema, indent=2))}</pre></details>"
        for name, schema in sorted(tree["components"]["schemas"].items())
    )
    return f"{routes}<h2>Schemas</h2>{schemas}"


def _answer(status: str, answer: Mapping[str, Any]) -> str:
    return f"<li><code>{escape(status)}</code> {escape(answer['description'])}</li>"
