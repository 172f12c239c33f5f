"""The page of `rewards services --serve`: the table of the newest look, which renews itself, and curves since the start."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from rewards.plane.rows import TITLES, Row
from rewards.plane.watch import Look, Watch
from trainer.report.charts import Chart, Series, figure, numbers_of
from trainer.report.charts import script as charts_script
from trainer.runs.look import style as shared_style
from trainer.runs.shell import Guard

MAX_STREAMS = 64  # pages that follow at once
KEPT = 720  # looks in the curves: an hour, five seconds apart
_FOLDER = Path(__file__).parent / "templates"
_WAIT_S, _BEAT_S = 0.1, 15.0  # between looks for news, and between signs of life
_STATE = {True: "up", False: "down"}  # colours of the shared style


@dataclass(frozen=True)
class _Point:
    """What the curves have of a row and a look; NaN where it is not known."""

    minute: float
    p50: float
    p95: float
    per_second: float
    busy: float


class Board:
    """The newest look, and what the curves need of those before. `run` looks, every `every_s` seconds, until it is cancelled."""

    def __init__(self, watch: Watch, every_s: float) -> None:
        self.plan, self.every_s = watch.plan, every_s
        self.look: Look | None = None
        self.count = 0
        self._watch = watch
        self._since = time.monotonic()
        self._points: list[deque[_Point]] = [deque(maxlen=KEPT) for _ in watch.plan.targets]

    async def run(self) -> None:
        async with self._watch as watch:
            while True:
                self.look = look = await watch.look()
                minute = (time.monotonic() - self._since) / 60
                for points, row in zip(self._points, look.rows, strict=True):
                    points.append(_point(minute, row))
                self.count += 1
                await asyncio.sleep(self.every_s)

    def charts(self) -> list[Chart]:
        """The curves of every address, one chart a number."""
        rows = () if self.look is None else self.look.rows

        def curves(name: str) -> list[Series]:
            return [
                Series(row.label, [point.minute for point in points], [getattr(point, name) for point in points])
                for row, points in zip(rows, self._points, strict=False)
            ]

        return [
            Chart(title, curves(name), name=name, x_label="minutes", zero=True)
            for name, title in (
                ("p95", "p95 of a request, seconds"),
                ("p50", "p50 of a request, seconds"),
                ("per_second", "requests a second"),
                ("busy", "items in flight"),
            )
        ]


def create_app(board: Board, guard: Guard) -> ASGIApp:
    """The application; `guard` decides who is answered."""
    site = _Site(board, guard)
    routes = [
        Route("/", site.page),
        Route("/services.json", site.json),
        Route("/charts", site.charts),
        Route("/events", site.events),
        Route("/assets/{name}", site.asset),
        Route("/enter", site.enter, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: site.refused})
    return guard.around(app, site.asked_for_token)


class _Site:
    def __init__(self, board: Board, guard: Guard) -> None:
        self._board, self._guard, self._streams = board, guard, 0

    async def page(self, _request: Request) -> Response:
        look = await self._newest()
        charts = [figure(chart) for chart in self._board.charts()]
        shown = {"look": look, "rows": [_shown(row) for row in look.rows], "titles": TITLES, "charts": charts}
        return HTMLResponse(_render("services.html.j2", plan=self._board.plan, every_s=self._board.every_s, **shown))

    async def json(self, _request: Request) -> Response:
        return JSONResponse((await self._newest()).as_json())

    async def charts(self, _request: Request) -> Response:
        return JSONResponse([{"name": chart.name, "numbers": numbers_of(chart)} for chart in self._board.charts()])

    async def events(self, request: Request) -> Response:
        if self._streams >= MAX_STREAMS:
            raise HTTPException(503, f"{MAX_STREAMS} pages follow already; close some.")
        return StreamingResponse(self._follow(request), media_type="text/event-stream")

    async def _follow(self, request: Request) -> AsyncIterator[str]:
        self._streams += 1
        try:
            seen, quiet = 0, 0.0
            yield "retry: 1000\n\n"
            while not (self._guard.stopping or await request.is_disconnected()):
                look = self._board.look
                if look is not None and self._board.count != seen:
                    seen, quiet = self._board.count, 0.0
                    yield f"data: {json.dumps(_event(look), ensure_ascii=False)}\n\n"
                elif quiet >= _BEAT_S:
                    quiet = 0.0
                    yield "event: beat\ndata: .\n\n"
                await asyncio.sleep(_WAIT_S)
                quiet += _WAIT_S
        finally:
            self._streams -= 1

    async def asset(self, request: Request) -> Response:
        files = {_asset("css"): (_style, "text/css"), _asset("js"): (_script, "text/javascript")}
        found = files.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404, "There is no such file.")
        headers = {"Cache-Control": "private, max-age=31536000, immutable"}
        return Response(found[0](), media_type=found[1], headers=headers)

    async def enter(self, request: Request) -> Response:
        form = await request.form(max_files=0, max_fields=2)
        given = form.get("token")
        return self._guard.enter(given if isinstance(given, str) else "", request.headers) or self.asked_for_token(401)

    def asked_for_token(self, status: int) -> Response:
        text = "Send one of the tokens of the page's token file."
        page = _render("said.html.j2", title="Who is there?", text=text, asks=True)
        return HTMLResponse(page, status_code=status, headers={"WWW-Authenticate": "Bearer"})

    def refused(self, _request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title = {404: "Nothing is there", 503: "Too many pages"}.get(error.status_code, "That cannot be shown")
        text = error.detail if error.detail.endswith(".") else f"{error.detail}."
        return HTMLResponse(_render("said.html.j2", title=title, text=text, asks=False), status_code=error.status_code)

    async def _newest(self) -> Look:
        """The newest look; the first takes as long as the slowest service."""
        while self._board.look is None:
            await asyncio.sleep(_WAIT_S)
        return self._board.look


def _shown(row: Row) -> dict[str, Any]:
    """A row for the page and its script: every text as it is shown."""
    return {
        "name": row.name,
        "columns": f"scores {', '.join(row.columns)}" if row.columns else "",
        "url": row.url,
        "state": row.state,
        "kind": "" if row.ok and row.state != "ready" else _STATE[row.ok],
        "remarks": row.remarks(),
        "over": row.over,
        "cells": {
            key: {"text": cell.text, "fine": cell.why if cell.known else "", "kind": "down" if cell.bad else ""}
            for key, cell in row.cells.items()
        },
    }


def _event(look: Look) -> dict[str, Any]:
    return {
        "summary": look.summary,
        "at": f"{look.at:%H:%M:%S}",
        "over": f"Counted {look.over}." if look.over else "",
        "rows": [_shown(row) for row in look.rows],
    }


def _point(minute: float, row: Row) -> _Point:
    """The counts of one interval; those since a service's start are of another kind, and no part of a curve."""
    requests, busy = row.cells["requests"].value, row.cells["busy"].value
    rate = requests["per_second"] if requests is not None else None
    p50, p95 = (row.cells[key].value for key in ("p50", "p95"))

    def seconds(value: Any) -> float:
        return math.nan if rate is None or value is None else float(value["seconds"] or value["low"])

    return _Point(
        minute,
        seconds(p50),
        seconds(p95),
        math.nan if rate is None else float(rate),
        math.nan if busy is None else float(busy["in_flight"]),
    )


@cache
def _style() -> str:
    return shared_style() + (_FOLDER / "services.css").read_text(encoding="utf-8")


@cache
def _script() -> str:
    return charts_script() + (_FOLDER / "services.js").read_text(encoding="utf-8")


@cache
def _asset(kind: str) -> str:
    """A name that changes with the content, so that a browser may keep it for ever."""
    text = _style() if kind == "css" else _script()
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.{kind}"


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(template: str, **context: Any) -> str:
    page = _templates().get_template(template)
    return page.render(style=_asset("css"), script=_asset("js"), **context)
