"""`/docs`: the OpenAPI document as one plain page. FastAPI's own loads its scripts from the internet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:auto;padding:1rem}"
    "pre{overflow:auto;background:#f4f4f4;color:#111;padding:.75rem}summary{cursor:pointer}"
)


def render_docs(tree: Mapping[str, Any]) -> str:
    """The page of one OpenAPI document: every route with its answers, and every schema. Needs no script."""
    title = escape(tree["info"]["title"])
    routes = "".join(
        f"<h2 id='{escape(path)}'>{escape(method.upper())} {escape(path)}</h2><p>{escape(about['summary'])}</p>"
        f"<ul>{''.join(_answer(status, answer) for status, answer in about['responses'].items())}</ul>"
        for path, methods in tree["paths"].items()
        for method, about in methods.items()
    )
    schemas = "".join(
        f"<details><summary>{escape(name)}</summary><pre>{escape(json.dumps(schema, indent=2))}</pre></details>"
        for name, schema in sorted(tree["components"]["schemas"].items())
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style>'
        f'<h1>{title}</h1><p>Version {escape(tree["info"]["version"])}. The same as <a href="openapi.json">OpenAPI</a>.'
        f"</p>{routes}<h2>Schemas</h2>{schemas}</html>"
    )


def _answer(status: str, answer: Mapping[str, Any]) -> str:
    return f"<li><code>{escape(status)}</code> {escape(answer['description'])}</li>"
