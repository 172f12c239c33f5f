"""A server that breaks the contract in one chosen way, for the fault tests of clients.

    python -m services.kit.testing.misbehaving --fault short_list --every 3 --port 0

`POST /fault {"fault": "never", "every": 1}` changes it while it runs. Items are scored by the length of their prompt.
Never part of a deployment.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import SettingsConfigDict
from starlette.responses import Response

from services.kit.run import bind, url_of
from services.kit.settings import ServiceSettings, load_settings

Fault = Literal[
    "none",
    "short_list",
    "long_list",
    "wrong_ids",
    "duplicate_ids",
    "nan",
    "infinity",
    "null_without_error",
    "out_of_range",
    "all_out_of_range",
    "constant",
    "other_name",
    "other_revision",
    "other_range",
    "other_direction",
    "garbage",
    "wrong_type",
    "status_500",
    "status_503",
    "overloaded",
    "never",
    "disconnect",
    "die",
    "not_ready",
]


class FaultChoice(BaseModel):
    """What goes wrong, and on which scoring requests."""

    model_config = ConfigDict(extra="forbid")

    fault: Fault = "none"
    every: int = Field(default=1, ge=1, description="Only every n-th scoring request fails.")


class MisbehavingSettings(ServiceSettings):
    """Settings of the misbehaving server."""

    model_config = SettingsConfigDict(env_prefix="MISBEHAVING_")

    fault: Fault = Field(default="none", description="What goes wrong.")
    every: int = Field(default=1, ge=1, description="Only every n-th scoring request fails; the others are answered.")
    latency_ms: float = Field(default=0.0, ge=0, description="Time before each answer.")
    retry_after_s: int = Field(default=1, ge=0, description="The Retry-After header of `overloaded`.")


def create_misbehaving_app(settings: MisbehavingSettings) -> FastAPI:
    """An app that answers like a reward service named `prompt_length`, but for the chosen fault."""
    app = FastAPI()
    app.state.choice = FaultChoice(fault=settings.fault, every=settings.every)
    app.state.scored = 0

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> Response:
        return _error(503, "not_ready") if app.state.choice.fault == "not_ready" else _json({"status": "ready"})

    @app.get("/v1/info")
    async def info() -> dict[str, Any]:
        return {
            "service": "misbehaving",
            "schema_version": "1",
            "rewards": [_SCORER],
            "default_reward": _SCORER["name"],
            "limits": {},
        }

    @app.post("/fault")
    async def choose(choice: FaultChoice) -> dict[str, Any]:
        app.state.choice, app.state.scored = choice, 0
        return choice.model_dump()

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        wanted = await _request_of(request)
        app.state.scored += 1
        number = app.state.scored  # others are counted while this one waits
        await asyncio.sleep(settings.latency_ms / 1000)
        choice: FaultChoice = app.state.choice
        fault = choice.fault if number % choice.every == 0 else "none"
        return await _answer(fault, wanted, settings)

    return app


_SCORER = {
    "name": "prompt_length",
    "revision": "1",
    "template_sha256": None,
    "range": [0, None],
    "higher_is_better": True,
}


_OTHER: dict[str, dict[str, Any]] = {
    "other_name": {"name": "something_else"},
    "other_revision": {"revision": "2"},
    "other_range": {"range": [-1000, None]},
    "other_direction": {"higher_is_better": False},
}


async def _request_of(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").startswith("multipart/"):
        async with request.form(max_files=10_000, max_part_size=1 << 26) as form:
            part = form["request"]
            text = part if isinstance(part, str) else await part.read()
    else:
        text = await request.body()
    tree: dict[str, Any] = json.loads(text)
    return tree


async def _answer(fault: Fault, wanted: dict[str, Any], settings: MisbehavingSettings) -> Response:
    match fault:
        case "garbage":
            return Response(b"\x00\xff<html>not json", media_type="application/json")
        case "wrong_type":
            return Response("<html>a proxy's page</html>", media_type="text/html")
        case "status_500" | "status_503":
            return _error(int(fault[-3:]), "asked to fail")
        case "overloaded":
            return _error(429, "asked to be full", {"Retry-After": str(settings.retry_after_s)})
        case "never":
            await asyncio.sleep(86_400)
        case "disconnect":
            return _Disconnect()
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    results = [_result(item) for item in wanted["items"]]
    _spoil(fault, results)
    scorer = {**_SCORER, **_OTHER.get(fault, {})}
    return _json(
        {"results": results, "scorer": scorer, "request_id": wanted.get("request_id") or "-", "schema_version": "1"}
    )


def _result(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": item["id"],
        "score": float(len(item["prompt"])),
        "components": {},
        "details": {},
        "error": None,
        "cached": False,
        "queue_ms": 0.0,
        "compute_ms": 0.0,
    }


def _spoil(fault: Fault, results: list[dict[str, Any]]) -> None:
    """Break the results in place; the last one is the victim where one is enough."""
    last = results[-1]
    match fault:
        case "short_list":
            results.pop()
        case "long_list":
            results.append(last | {"id": "nobody-asked"})
        case "wrong_ids":
            last["id"] = "nobody-asked"
        case "duplicate_ids":
            results.append(dict(last))
        case "nan":
            last["score"] = float("nan")
        case "infinity":
            last["score"] = float("inf")
        case "null_without_error":
            last["score"] = None
        case "out_of_range":
            last["score"] = -50.0
        case "all_out_of_range":
            for result in results:
                result["score"] = -1e30
        case "constant":
            for result in results:
                result["score"] = 7.0


class _Disconnect(Response):
    """Promises a long body and breaks off in the middle."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"100000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"results": [', "more_body": True})


def _json(tree: object) -> Response:
    return Response(json.dumps(tree), media_type="application/json")  # Python's writer emits NaN, which is the point


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body = {"error": {"code": "fault", "message": message}}
    return Response(json.dumps(body), status, headers, media_type="application/json")


def main() -> None:
    settings = load_settings(MisbehavingSettings, prog="services.kit.testing.misbehaving")
    sock = bind(settings)
    print(f"misbehaving listening on {url_of(sock)}", flush=True)
    config = uvicorn.Config(
        create_misbehaving_app(settings), log_level="critical", access_log=False, timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[sock])


if __name__ == "__main__":
    main()
