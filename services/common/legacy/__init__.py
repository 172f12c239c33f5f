"""The protocols that other trainers' reward clients speak, on top of the same service. Off unless `--legacy` is given.

`POST /` takes the pickles of flow_grpo, verl-omni and DeepGen-RL, `POST /compute` the JSON of Flow-Factory. Neither can
name a reward, group its items, or say that a score is missing; docs/legacy_clients.md says what follows from that.
"""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI, Request
from starlette.responses import Response

from services.common.errors import ApiError, ErrorResponse
from services.common.legacy.compute import dump_rewards, parse_compute
from services.common.legacy.items import choose_reward, scores_of
from services.common.legacy.pickled import dump_scores, parse_pickled
from services.common.legacy.plain_pickle import dump_plain
from services.common.service import Service


class PickledError(ErrorResponse):
    """An error as clients of the pickle protocol read it: `{"error": message}`."""

    media_type = "application/octet-stream"

    def body_of(self, error: ApiError) -> bytes:
        return dump_plain({"error": error.message})


def add_legacy_routes(app: FastAPI, service: Service) -> None:
    """Add `POST /` and `POST /compute`. Raises ValueError when these protocols cannot serve the reward."""
    reward = choose_reward(service.rewards, service.settings.legacy_reward)
    missing = service.settings.legacy_missing

    @app.post("/", include_in_schema=False)
    async def pickled(request: Request) -> Response:
        try:
            answer = await service.score(request, request.scope["arrived"], partial(parse_pickled, reward))
            return Response(dump_scores(scores_of(answer, missing)), media_type=PickledError.media_type)
        except ApiError as error:
            return PickledError(error)

    @app.post("/compute", include_in_schema=False)
    async def compute(request: Request) -> Response:
        answer = await service.score(request, request.scope["arrived"], partial(parse_compute, reward))
        return Response(dump_rewards(scores_of(answer, missing)), media_type="application/json")
