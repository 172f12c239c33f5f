"""The OpenAPI document of a service: every route with its schemas, its refusals, its token, and examples that score well."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from services.kit.errors import CODES
from services.kit.http.service import Service
from services.kit.samples import Sample
from wire.schema import ErrorCode, ItemError, ItemResult, ScoreRequest, ScoreResponse, ScorerInfo

_REF = "#/components/schemas/{model}"
_SCHEME = "bearer"
BEARER: list[dict[str, list[str]]] = [{_SCHEME: []}, {}]  # with a token or, where the service asks for none, without
_DESCRIPTION = """\
Scores images and texts. A score that failed is null with a reason, never a number. At [`/`](.) is a page to try it; \
`GET /v1/sample` gives a request that scores well, to be sent to `POST /v1/score` as it is."""
_TAGS = [
    {"name": "scoring", "description": "Ask for scores, and what can be asked for."},
    {"name": "state", "description": "Whether the service lives, is ready, and what it has done."},
]


def make_document(app: FastAPI, service: Service, port: int) -> dict[str, Any]:
    """The document of one service. `port` is where it listens unless told otherwise.

    Examples are those of the rewards that are served, and may differ once the scorer is loaded; the rest is made once.
    """
    if app.openapi_schema is None:
        app.openapi_schema = _without_examples(app, port)
    tree = dict(app.openapi_schema)
    score = tree["paths"]["/v1/score"]["post"]
    body = _request_body(service.samples())
    tree["paths"] = {**tree["paths"], "/v1/score": {"post": {**score, "requestBody": body}}}
    return tree


def _without_examples(app: FastAPI, port: int) -> dict[str, Any]:
    tree = get_openapi(
        title=app.title,
        version=app.version,
        routes=app.routes,
        description=_DESCRIPTION,
        tags=_TAGS,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        servers=[
            {"url": "./", "description": "where this document was asked for"},
            {"url": f"http://127.0.0.1:{port}", "description": "where the service listens unless it is told otherwise"},
        ],
    )
    _, request = models_json_schema([(ScoreRequest, "validation")], ref_template=_REF)
    components = tree.setdefault("components", {})
    components.setdefault("schemas", {}).update(request["$defs"])
    components["schemas"]["RequestError"]["properties"]["code"]["examples"] = sorted(set(CODES.values()))
    components["securitySchemes"] = {
        _SCHEME: {
            "type": "http",
            "scheme": "bearer",
            "description": "A token of the service's --token-file. A service that was started without one asks for none.",
        }
    }
    answer = tree["paths"]["/v1/score"]["post"]["responses"]["200"]["content"]["application/json"]
    answer["examples"] = {"answer": {"summary": "one score, and one that failed", "value": _answer()}}
    return tree


def _request_body(samples: dict[str, Sample]) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model="ScoreRequest")}
    binary = {"type": "string", "format": "binary"}
    parts = {
        "type": "object",
        "required": ["request"],
        "properties": {
            "request": schema,
            "image0": {**binary, "description": "The file of the image that the request names `image0`."},
            "image1": {**binary, "description": "The file of the image that the request names `image1`, if it does."},
            "source0": {**binary, "description": "The file of the source image of an edit, if the request names it."},
        },
        "additionalProperties": binary,
        "description": "The JSON part `request`, and one binary part per image, under the name its `part` field gives.",
    }
    in_json, in_parts = {}, {}
    for reward, sample in samples.items():
        request = sample.request(reward).model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        named = sample.request_of_parts(reward).model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        in_json[reward] = {"summary": f"{reward}: {sample.prompt}", "value": request}
        in_parts[reward] = {"summary": f"{reward}: {sample.prompt}", "value": {"request": named}}
    content: dict[str, dict[str, Any]] = {
        "application/json": {"schema": schema},
        "multipart/form-data": {"schema": parts, "encoding": {"request": {"contentType": "application/json"}}},
    }
    if in_json:
        content["application/json"]["examples"] = in_json
        content["multipart/form-data"]["examples"] = in_parts
    return {"required": True, "content": content}


def _answer() -> dict[str, Any]:
    """What an answer looks like, with a score and without."""
    seen = {"images": [{"score": 1.0, "lines": [{"text": "FRESH BREAD", "confidence": 0.98}]}]}
    error = ItemError(code=ErrorCode.NOT_APPLICABLE, message="no `targets` given and the prompt quotes no text")
    results = [
        ItemResult(id="0", score=1.0, components={"exact": 1.0}, details=seen, compute_ms=84.0),
        ItemResult(id="1", score=None, error=error, compute_ms=84.0),
    ]
    scorer = ScorerInfo(name="multi", revision="4", range=(0.0, 1.0))
    return ScoreResponse(results=results, scorer=scorer, request_id="a1b2").model_dump(mode="json", exclude_none=True)
