"""The protocols that other trainers' reward clients speak, on top of the same service. Off unless `--legacy` is given.

`POST /` takes the pickles of flow_grpo, verl-omni and DeepGen-RL, `POST /compute` the JSON of Flow-Factory. Neither can
name a reward, group its items, or say that a score is missing; docs/legacy_clients.md says what follows from that.
"""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI, Request
from starlette.responses import Response

from services.kit.errors import ApiError
from services.kit.http.service import Parse, Service
from services.kit.legacy.compute import dump_rewards, parse_compute
from services.kit.legacy.items import choose_reward, may_pass, scores_of
from services.kit.legacy.pickled import PickledError, PickledRequest
from wire.schema import ScoreResponse

# How an error is written for the clients of a route that do not read JSON.
LEGACY_ERRORS = {("POST", "/"): PickledError}


def add_legacy_routes(app: FastAPI, service: Service) -> None:
    """Add `POST /` and `POST /compute`. Raises ValueError when these protocols cannot serve the reward."""
    reward = choose_reward(service.rewards, service.settings.legacy_reward)
    missing = service.settings.legacy_missing
    needs_prompt = reward not in service.image_only

    async def response(request: Request, parse: Parse) -> ScoreResponse:
        leaves_after_s = service.settings.legacy_timeout_s
        try:
            return await service.score(request, request.scope["arrived"], parse, leaves_after_s=leaves_after_s)
        except ApiError as error:
            raise may_pass(error.message, error.code) if error.status == 504 else error from error

    @app.post("/", include_in_schema=False)
    async def pickled(request: Request) -> Response:
        asked = PickledRequest(reward, needs_prompt=needs_prompt, serves_rows=service.legacy_rows)
        try:
            answer = asked.answer(await response(request, asked.parse), missing)
        except ApiError as error:
            return PickledError(error)
        return Response(answer, media_type=PickledError.media_type)

    @app.post("/compute", include_in_schema=False)
    async def compute(request: Request) -> Response:
        scores = scores_of(await response(request, partial(parse_compute, reward, needs_prompt=needs_prompt)), missing)
        return Response(dump_rewards(scores), media_type="application/json")
