"""The app factory: one scorer in, one HTTP service out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse, Response

from services.kit.dispatch.base import StartError
from services.kit.errors import RESPONSES, install_error_map
from services.kit.http.docs_page import render_docs
from services.kit.http.service import Service
from services.kit.http.shell import Shell
from services.kit.http.try_page import try_page
from services.kit.legacy import LEGACY_ERRORS, add_legacy_routes
from services.kit.scorer import AsyncScorer, Scorer
from services.kit.settings import ServiceSettings
from wire.schema import SCHEMA_VERSION, ScoreRequest, ScoreResponse, ServiceInfo

logger = logging.getLogger("services.app")
_REF = "#/components/schemas/{model}"


def create_app(
    scorer: Scorer | AsyncScorer,
    service_name: str,
    settings: ServiceSettings,
    on_start_error: Callable[[str], None] | None = None,
    add_routes: Callable[[FastAPI], None] | None = None,
) -> FastAPI:
    """Build the service's app. Its lifespan loads the scorer in the background; `/ready` says when that is done.

    `on_start_error` is called with the reason when loading or warming up fails; the app then stays up, not ready.
    `add_routes` adds routes of the service's own.
    Raises ValueError when the settings' token file is wrong, or `legacy` cannot serve the reward.
    """
    service = Service(scorer, service_name, settings)

    async def start() -> None:
        try:
            await service.start()
        except StartError as error:
            logger.error("start failed", extra={"reason": str(error)})
            if on_start_error is not None:
                on_start_error(str(error))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(start())
        try:
            yield
        finally:
            starting.cancel()
            await service.stop()

    title = f"{service_name} reward service"
    app = FastAPI(title=title, version=SCHEMA_VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    install_error_map(app)
    _add_routes(app, service)
    if settings.legacy:
        add_legacy_routes(app, service)
    if add_routes is not None:
        add_routes(app)
    app.add_middleware(Shell, service=service, errors_of=LEGACY_ERRORS if settings.legacy else None)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: RESPONSES[status] for status in statuses}

    @app.post(
        "/v1/score",
        summary="Score items",
        response_model=None,
        responses={200: {"model": ScoreResponse, "description": "One result per item id."}, **RESPONSES},
        openapi_extra={"requestBody": _request_body()},
    )
    async def score(request: Request) -> Response:
        response = await service.score(request, request.scope["arrived"])
        return Response(response.model_dump_json(), media_type="application/json")

    @app.get("/health", summary="Alive", response_model=None)
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", summary="Loaded, and warm-up scores came back", response_model=None, responses=answers(503))
    async def ready() -> dict[str, str]:
        service.check_ready()
        return {"status": "ready"}

    @app.get("/v1/info", summary="Rewards and limits", responses=answers(401))
    async def info() -> ServiceInfo:
        return await service.info()

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response, responses=answers(401))
    async def metrics() -> Response:
        return Response(service.render_metrics(), media_type=service.metrics.content_type)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return try_page(service.name)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(render_docs(app.openapi()))


def _request_body() -> dict[str, Any]:
    schema = {"$ref": _REF.format(model="ScoreRequest")}
    parts = {
        "type": "object",
        "required": ["request"],
        "properties": {"request": schema},
        "additionalProperties": {"type": "string", "format": "binary"},
        "description": "The JSON part `request`, and one binary part per image, under the name its `part` field gives.",
    }
    return {
        "required": True,
        "content": {
            "application/json": {"schema": schema},
            "multipart/form-data": {"schema": parts, "encoding": {"request": {"contentType": "application/json"}}},
        },
    }


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        tree = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, request = models_json_schema([(ScoreRequest, "validation")], ref_template=_REF)
        tree.setdefault("components", {}).setdefault("schemas", {}).update(request["$defs"])
        app.openapi_schema = tree
    return app.openapi_schema
