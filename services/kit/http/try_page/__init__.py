"""`GET /`: a page to try the service with an image and a prompt.

One document without a build step and without anything from elsewhere. Its policy admits exactly the style and the
script that are in it, by their hashes, requests to this service only, and no writing of HTML from text.
"""

from __future__ import annotations

from functools import cache
from html import escape
from pathlib import Path

from starlette.responses import HTMLResponse

from services.kit.http.pages import hashed, page_headers

_FOLDER = Path(__file__).parent
_SCRIPTS = ("elements.js", "pictures.js", "rows.js", "call.js", "answer.js", "page.js")  # one script, in this order


def try_page(service_name: str) -> HTMLResponse:
    """The page of a service, with its security headers."""
    document, policy = _render(service_name)
    return HTMLResponse(document, headers=page_headers(policy))


@cache
def _render(service_name: str) -> tuple[str, tuple[str, ...]]:
    """The document and its content security policy."""
    style = _read("page.css")
    script = "\n".join(_read(name) for name in _SCRIPTS)
    document = _read("page.html").replace("{{service}}", escape(service_name))
    document = document.replace("{{style}}", style).replace("{{script}}", script)
    policy = (
        "default-src 'none'",
        f"style-src '{hashed(style)}'",
        f"script-src '{hashed(script)}'",
        "require-trusted-types-for 'script'",
        "connect-src 'self'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return document, policy


def _read(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8")
