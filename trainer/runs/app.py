"""The server of runs: pages, events, images and downloads, all of them read-only."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from functools import partial
from typing import IO

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from trainer.report import away_from_its_folder
from trainer.runs import compare, downloads
from trainer.runs.axes import AXES
from trainer.runs.catalogue import Catalogue
from trainer.runs.folder import MAX_BYTES
from trainer.runs.look import asset_name, script, served, style
from trainer.runs.pages import (
    GalleryQuery,
    TableQuery,
    charts_json,
    compare_page,
    event,
    gallery_page,
    message_page,
    rows_of,
    run_page,
    runs_page,
)
from trainer.runs.run import Run
from trainer.runs.samples import image_bytes
from trainer.runs.shell import Guard

MAX_STREAMS = 64  # pages that follow the runs at once
_LOOK_S, _BEAT_S = 0.1, 15.0  # between looks for changes; between signs of life
_MAX_WORDS = 200  # characters of a search
# A report is a page with scripts of its own: it may run them, as nobody in particular, and reach nothing.
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


def create_app(catalogue: Catalogue, guard: Guard) -> ASGIApp:
    """The application; `guard` decides who is answered."""
    site = _Site(catalogue, guard)
    routes = [
        Route("/", site.table),
        Route("/run/{name:path}", site.run),
        Route("/gallery/{name:path}", site.gallery),
        Route("/compare", site.compare),
        Route("/charts/{name:path}", site.charts),
        Route("/image/{name:path}", site.image),
        Route("/file/{name:path}", site.file),
        Route("/download/{what}.{kind}", site.download),
        Route("/events", site.events),
        Route("/assets/{name}", site.asset),
        Route("/enter", site.enter, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: site.refused})
    return guard.around(app, site.asked_for_token)


class _Site:
    """The endpoints. Those that read files are plain functions: the server runs them in threads."""

    def __init__(self, catalogue: Catalogue, guard: Guard) -> None:
        self._catalogue, self._guard, self._streams = catalogue, guard, 0

    def table(self, request: Request) -> Response:
        asked = request.query_params
        query = TableQuery(
            words=asked.get("q", "")[:_MAX_WORDS],
            states=tuple(asked.getlist("state")),
            sort=asked.get("sort", "-written")[:_MAX_WORDS],
            page=_whole(asked.get("page"), 1),
        )
        return HTMLResponse(runs_page(self._catalogue, served(), query))

    def run(self, request: Request) -> Response:
        return HTMLResponse(run_page(self._run(request), self._catalogue.root, served(), _axis(request)))

    def charts(self, request: Request) -> Response:
        text = json.dumps(charts_json(self._run(request), _axis(request)), separators=(",", ":"), allow_nan=False)
        return Response(text, media_type="application/json")

    def gallery(self, request: Request) -> Response:
        asked, run = request.query_params, self._run(request)
        query = GalleryQuery(
            words=asked.get("q", "")[:_MAX_WORDS],
            order=asked.get("order", "file"),
            reward=asked.get("reward", ""),
            steps=tuple(_whole(step, -1) for step in asked.getlist("step")),
            page=_whole(asked.get("page"), 1),
        )

        def page_href(number: int) -> str:
            return str(request.url.include_query_params(page=number).query).join(["?", ""])

        return HTMLResponse(gallery_page(run, self._catalogue.root, served(), query, page_href))

    def compare(self, request: Request) -> Response:
        names = list(dict.fromkeys(request.query_params.getlist("run")))
        if not names:
            raise HTTPException(400, "Name the runs to compare: tick them in the table.")
        runs = [self._named(name) for name in names[: compare.MAX_RUNS]]
        left = names[compare.MAX_RUNS :]
        return HTMLResponse(
            compare_page(
                runs,
                self._catalogue.root,
                served(),
                axis=_axis(request),
                more=request.query_params.getlist("key")[:20],
                at=None if (at := _whole(request.query_params.get("at"), -1)) < 0 else at,
                left_out=f"At most {compare.MAX_RUNS} runs are compared; {len(left)} are left out." if left else "",
            )
        )

    def image(self, request: Request) -> Response:
        run = self._glanced(request)
        try:
            data = image_bytes(run.folder, request.query_params.get("path", ""))
        except OSError as error:
            raise HTTPException(404, f"There is no such image in {run.name}.") from error
        return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=60"})

    def file(self, request: Request) -> Response:
        """The report, and what is in `flight/`; no other file."""
        run, path = self._glanced(request), request.query_params.get("path", "")
        folder, _, name = path.rpartition("/")
        kind = {"report.html": "text/html", "flight": "application/json"}.get(folder or name, "")
        if folder == "flight" and name.endswith(".png"):
            kind = "image/png"
        elif folder == "flight" and not name.endswith(".json"):
            kind = ""
        try:
            if not kind:
                raise OSError("no file that is shown")
            data = run.folder.read(*path.split("/"), limit=MAX_BYTES)
        except OSError as error:
            raise HTTPException(404, f"There is no such file in {run.name}, or it is too large to be shown.") from error
        if kind != "text/html":
            return Response(data, media_type=kind)
        page = away_from_its_folder(data.decode("utf-8", "replace"))
        return HTMLResponse(page, headers={"Content-Security-Policy": _REPORT_POLICY})

    def download(self, request: Request) -> Response:
        what, kind = request.path_params["what"], request.path_params["kind"]
        if kind not in downloads.KINDS or what not in ("runs", "metrics", "scores"):
            raise HTTPException(404, "There is no such download.")
        if what == "runs":
            told = rows_of(self._catalogue)
            rows: downloads.Rows = partial(downloads.table, told)
            name = self._catalogue.root.name
        else:
            run = self._named(request.query_params.get("run", ""))
            name = run.name.replace("/", "_")
            rows = partial(downloads.metrics, run.folder)
            if what == "scores":
                rows = partial(downloads.scores, run.folder, compare.evaluated_steps(run.folder))
        file = _written(rows, kind, f"{what} of {name}")
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
        headers = {
            "Content-Disposition": f'attachment; filename="{safe.encode("ascii", "replace").decode()}_{what}.{kind}"'
        }
        return StreamingResponse(_pieces(file), media_type=downloads.KINDS[kind], headers=headers)

    async def events(self, request: Request) -> Response:
        if self._streams >= MAX_STREAMS:
            raise HTTPException(503, f"{MAX_STREAMS} pages follow the runs already; close some.")
        only = request.query_params.get("run")
        if only is not None and self._catalogue.get(only) is None:
            raise HTTPException(404, "There is no such run.")
        return StreamingResponse(self._follow(request, only), media_type="text/event-stream")

    async def _follow(self, request: Request, only: str | None) -> AsyncIterator[str]:
        """An event for every change of the runs that a page shows: of one, or of all."""
        self._streams += 1
        try:
            known = {run.name: run.version for run in self._catalogue.runs()}
            seen, unread, quiet = -1, -1, 0.0
            yield "retry: 1000\n\n"
            while not (self._guard.stopping or await request.is_disconnected()):
                if self._catalogue.version != seen:
                    seen = self._catalogue.version
                    runs = [run for run in self._catalogue.runs() if only in (None, run.name)]
                    changed = [run for run in runs if known.get(run.name, -1) != run.version]
                    appeared = [run.name for run in changed if run.name not in known]
                    known |= {run.name: run.version for run in changed}
                    left = self._catalogue.unread()
                    if changed or left != unread:
                        unread, quiet = left, 0.0
                        yield f"data: {await asyncio.to_thread(event, changed, appeared, left)}\n\n"
                elif quiet >= _BEAT_S:
                    quiet = 0.0
                    yield "event: beat\ndata: .\n\n"
                await asyncio.sleep(_LOOK_S)
                quiet += _LOOK_S
        finally:
            self._streams -= 1

    def asset(self, request: Request) -> Response:
        files = {asset_name("css"): (style, "text/css"), asset_name("js"): (script, "text/javascript")}
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
        """The page that asks for the token."""
        text = "Send one of the tokens of the server's token file."
        page = message_page(self._catalogue.root, served(), "Who is there?", text, asks=True)
        return HTMLResponse(page, status_code=status, headers={"WWW-Authenticate": "Bearer"})

    def refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        title = {404: "Nothing is there", 503: "Too many pages"}.get(error.status_code, "That cannot be shown")
        text = error.detail if error.detail.endswith(".") else f"{error.detail}."
        return HTMLResponse(message_page(self._catalogue.root, served(), title, text), status_code=error.status_code)

    def _run(self, request: Request) -> Run:
        return self._named(request.path_params["name"])

    def _named(self, name: str) -> Run:
        run = self._catalogue.whole(name)
        if run is None:
            raise HTTPException(404, f"There is no run {name[:200]!r}.")
        return run

    def _glanced(self, request: Request) -> Run:
        run = self._catalogue.get(request.path_params["name"])
        if run is None:
            raise HTTPException(404, "There is no such run.")
        return run


def _axis(request: Request) -> str:
    axis = request.query_params.get("x", "step")
    return axis if axis in AXES else "step"


def _whole(text: str | None, otherwise: int) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else otherwise


def _written(rows: downloads.Rows, kind: str, what: str) -> IO[bytes]:
    """The download in a file without a name, which goes when it is closed."""
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        try:
            downloads.write(rows, kind, file)
        except OSError as error:
            raise HTTPException(404, f"{what} cannot be read: {error.strerror}.") from error
        file.seek(0)
        stack.pop_all()  # who sends it closes it
        return file


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while data := file.read(256 * 1024):
            yield data
