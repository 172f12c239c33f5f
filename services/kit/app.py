"""The app factory: one scorer in, one HTTP service out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, Response

from services.kit.catalogue import CATALOGUE
from services.kit.dispatch.base import StartError
from services.kit.errors import install_error_map, responses
from services.kit.http.docs_page import add_docs
from services.kit.http.document import BEARER, make_document
from services.kit.http.service import Service
from services.kit.http.shell import Shell
from services.kit.http.try_page import try_page
from services.kit.legacy import LEGACY_ERRORS, add_legacy_routes
from services.kit.scorer import AsyncScorer, Scorer
from services.kit.settings import ServiceSettings
from wire.schema import MAX_ID_LENGTH, SCHEMA_VERSION, ScoreRequest, ScoreResponse, ServiceInfo, Status

logger = logging.getLogger("services.app")
_REWARD = {
    "name": "reward",
    "in": "query",
    "required": False,
    "description": "Which of the service's rewards; its default otherwise.",
    "schema": {"type": "string", "maxLength": MAX_ID_LENGTH},
}


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
    port = next((entry.port for entry in CATALOGUE if entry.name == service_name), settings.port)
    app.openapi = lambda: make_document(app, service, port)  # type: ignore[method-assign]
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    _add_scoring(app, service)
    _add_state(app, service)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return try_page(service.name)

    add_docs(app, service)


def _add_scoring(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/score",
        operation_id="score",
        tags=["scoring"],
        summary="Score items",
        description="Each item gets a finite score, or null with an error; one bad item never fails its neighbours. Images "
        "are in the JSON as base64, or parts of a multipart body, which is smaller.",
        response_model=None,
        responses={200: {"model": ScoreResponse, "description": "One result per item id."}, **responses()},
        openapi_extra={"security": BEARER},
    )
    async def score(request: Request) -> Response:
        response = await service.score(request, request.scope["arrived"])
        return Response(response.model_dump_json(), media_type="application/json")

    @app.get(
        "/v1/sample",
        operation_id="sample",
        tags=["scoring"],
        summary="A request that scores well",
        description="The body of a request for `POST /v1/score`, which the named reward (else the default) scores well.",
        response_model=None,
        responses={200: {"model": ScoreRequest, "description": "A request."}, **responses(401, 403, 404, 421, 429)},
        openapi_extra={"security": BEARER, "parameters": [_REWARD]},
    )
    async def sample(request: Request) -> Response:
        found = await asyncio.to_thread(service.sample, request.query_params.get("reward"))
        return Response(found.model_dump_json(exclude_none=True, exclude_defaults=True), media_type="application/json")

    @app.get(
        "/v1/info",
        operation_id="info",
        tags=["scoring"],
        summary="Rewards and limits",
        description="What is served: each reward's revision, range and direction, and the most that one request may hold.",
        responses=responses(401, 403, 421, 429),
        openapi_extra={"security": BEARER},
    )
    async def info() -> ServiceInfo:
        return await service.info()


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", operation_id="health", tags=["state"], summary="Alive", openapi_extra={"security": []})
    async def health() -> Status:
        return Status(status="alive")

    @app.get(
        "/ready",
        operation_id="ready",
        tags=["state"],
        summary="Loaded, and warm-up scores came back",
        responses=responses(503),
        openapi_extra={"security": []},
    )
    async def ready() -> Status:
        service.check_ready()
        return Status(status="ready")

    @app.get(
        "/metrics",
        operation_id="metrics",
        tags=["state"],
        summary="Prometheus metrics",
        response_class=Response,
        responses={
            200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
            **responses(401, 403, 421, 429),
        },
        openapi_extra={"security": BEARER},
    )
    async def metrics() -> Response:
        return Response(service.render_metrics(), media_type=service.metrics.content_type)
