"""`GET /docs`: the API's page, from which every route can be called. Swagger UI, served from here; nothing is asked of others.

The page is open and holds nothing of the service's: where there are tokens it asks for one, and gets the document with it.
Its policy admits its own style and script by their hashes, Swagger UI by its address, and requests to this service only.
Without scripts it is the document as plain HTML (where no token is needed for that).
"""

from __future__ import annotations

import asyncio
import gzip
from functools import cache
from html import escape
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, Response

from services.kit.guard.auth import ASSETS
from services.kit.http.docs_page.plain import render_plain
from services.kit.http.pages import hashed, page_headers
from services.kit.http.service import Service

_FOLDER = Path(__file__).parent
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
_CLOSED = (
    '<p>Without scripts: <code>curl -H "Authorization: Bearer $TOKEN"</code> and the address of '
    "<code>openapi.json</code> beside this page.</p>"
)


def add_docs(app: FastAPI, service: Service) -> None:
    """The page and the two files of Swagger UI."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        plain = _CLOSED if service.tokens else await asyncio.to_thread(lambda: render_plain(app.openapi()))
        return _page(service.name, plain)

    for path in ASSETS:
        app.get(path, include_in_schema=False)(_asset(path.rpartition("/")[2]))


def _page(service_name: str, plain: str) -> HTMLResponse:
    style, script = _read("page.css"), _read("page.js")
    document = _read("page.html").replace("{{service}}", escape(service_name))
    document = document.replace("{{style}}", style).replace("{{script}}", script).replace("{{plain}}", plain)
    policy = (
        "default-src 'none'",
        f"style-src 'self' '{hashed(style)}'",
        f"script-src 'self' '{hashed(script)}'",
        "connect-src 'self'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return HTMLResponse(document, headers=page_headers(policy))


def _asset(name: str):  # type: ignore[no-untyped-def]  # a route, which FastAPI reads by its own annotations
    async def asset(request: Request) -> Response:
        """As it lies here; unpacked for the rare client that takes no gzip."""
        packed = await asyncio.to_thread((_FOLDER / f"{name}.gz").read_bytes)
        headers = {
            "Cache-Control": "public, max-age=86400",
            "X-Content-Type-Options": "nosniff",
            "Vary": "Accept-Encoding",
        }
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
        else:
            packed = await asyncio.to_thread(gzip.decompress, packed)
        return Response(packed, headers=headers, media_type=_TYPES[Path(name).suffix])

    return asset


@cache
def _read(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8")
