"""A judge whose API server lives and whose engine is dead: the gateway is not ready until calls are answered again."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import httpx
import pytest
from PIL import Image

from services.eval.settings import EvalSettings, make_scorer
from services.kit.app import create_app
from services.kit.judge.client import SILENCE, JudgeClient, JudgeEndpoint, JudgeError
from services.kit.judge.health import LOST_AFTER
from services.kit.judge.metrics import JudgeMetrics
from services.kit.judge.passthrough import PassThrough
from services.kit.testing.scripted_judge import Reply
from services.unifiedreward.scorer import UnifiedRewardScorer
from services.unifiedreward.settings import UnifiedRewardSettings
from services.vqa.scorer import VqaScorer
from services.vqa.settings import VqaSettings
from tests.support.gateways import score_request
from tests.support.judges import judging
from tests.support.redis_services import until

pytestmark = pytest.mark.anyio

ALIVE = Reply("<answer>Image 1 is better</answer><score>[1]</score>", first_token=(("Yes", -0.5),))
DEAD = Reply("EngineDeadError", status=500)
IMAGES = [Image.new("RGB", (8, 8), (level,) * 3) for level in (10, 20, 30)]
METADATA = {"testpoints": ["Style"], "descriptions": ["ink"]}


class Judge:
    """Says `reply`, and to a text with `poison` in it 500."""

    def __init__(self):
        self.reply = ALIVE

    def __call__(self, question):
        return DEAD if "poison" in question.text else self.reply


def unifiedreward(url, **more):
    settings = UnifiedRewardSettings(judge_url=url, model="judge", check_model=False, **more)
    return UnifiedRewardScorer(settings), settings


def evaluation(url, **more):
    settings = EvalSettings(judge_url=url, model="judge", **more)
    return make_scorer(settings), settings


def vqa(url, **more):
    settings = VqaSettings(judge_url=url, model="judge", check_model=False, **more)
    return VqaScorer(settings), settings


@asynccontextmanager
async def gateway(make, judge, **more):
    scorer, settings = make(judge.url, cache_entries=0, **more)
    app = create_app(scorer, "gateway", settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await until(lambda: app.state.service.ready)
            client.service = app.state.service
            yield client


def body(prompt="a lamp"):
    request = score_request(IMAGES, prompt, group=True)
    for item in request["items"]:
        item["metadata"] = METADATA
    return request


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (unifiedreward, 500),
        (unifiedreward, 502),
        (unifiedreward, 503),
        (unifiedreward, 504),
        (evaluation, 500),
        (vqa, 500),
    ],
)
async def test_several_5xx_without_a_200_between_them_make_the_service_not_ready(make, status):
    behave = Judge()
    with judging(behave) as judge:
        async with gateway(make, judge) as client:
            assert (await client.post("/v1/score", json=body())).status_code == 200
            behave.reply = Reply("engine", status=status)
            lost = await client.post("/v1/score", json=body())
            assert lost.status_code == 503 and lost.headers["retry-after"] == "1", "another replica may score it"
            ready = await client.get("/ready")
            assert ready.status_code == 503
            message = ready.json()["error"]["message"]
            assert "up and answers no call: " in message and f"the last with HTTP {status}" in message
            calls = judge.calls
            await until(lambda: judge.calls > calls)  # it is asked again though no request comes
            assert (await client.get("/ready")).status_code == 503
            behave.reply = ALIVE
            await until(lambda: client.service.ready)
            answer = await client.post("/v1/score", json=body())
    assert answer.status_code == 200 and all(each["score"] is not None for each in answer.json()["results"])


async def test_an_engine_that_hangs_or_breaks_answers_off_is_dead_too():
    behave = Judge()
    with judging(behave) as judge:
        async with gateway(unifiedreward, judge, call_timeout_s=0.2) as client:
            for reply in (Reply("x", delay_s=30), Reply("<answer>Im", "abort")):
                behave.reply = reply
                assert (await client.post("/v1/score", json=body())).status_code in (503, 504)
                assert (await client.get("/ready")).status_code == 503
                behave.reply = ALIVE
                await until(lambda: client.service.ready)


@pytest.mark.parametrize(
    "make", [unifiedreward, *(pytest.param(each, marks=pytest.mark.slow) for each in (evaluation, vqa))]
)
async def test_a_judge_that_hangs_is_dead_also_when_every_deadline_comes_before_the_limit_of_a_call(make):
    behave = Judge()
    with judging(behave) as judge:
        async with gateway(make, judge, call_timeout_s=120) as client:
            behave.reply = Reply("x", delay_s=30)
            for _ in range(2):  # a service that asks about each image once: three calls at a time
                assert client.service.ready
                answer = await client.post("/v1/score", json=body() | {"deadline_ms": 1000})
                assert answer.status_code in (200, 503, 504)
                if not client.service.ready:
                    break
            ready = await client.get("/ready")
            assert ready.status_code == 503 and SILENCE in ready.json()["error"]["message"]
            behave.reply = ALIVE
            await until(lambda: client.service.ready)
            answer = await client.post("/v1/score", json=body())
    assert answer.status_code == 200 and all(each["score"] is not None for each in answer.json()["results"])


async def test_a_call_that_its_caller_gave_no_time_and_one_that_waited_for_its_turn_tell_nothing_of_the_judge():
    with judging(lambda _question: Reply("x", delay_s=30)) as judge:
        client = JudgeClient(JudgeEndpoint(judge.url, "judge", concurrency=1), JudgeMetrics())

        async def ask(seconds):
            with pytest.raises(JudgeError, match="the deadline"):
                await client.ask([], max_tokens=1, deadline=time.monotonic() + seconds)

        for _ in range(LOST_AFTER + 1):
            await ask(0.05)
        await asyncio.gather(*[ask(0.5) for _ in range(LOST_AFTER + 1)])  # one of them has the only slot
        assert client.failure is None
        for _ in range(LOST_AFTER - 1):
            await ask(0.5)
        assert SILENCE in (client.failure or "")
        await client.aclose()


async def test_calls_that_pass_through_and_hang_count_too():
    behave = Judge()
    behave.reply = Reply("x", delay_s=30)
    question = {"model": "judge", "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}]}]}
    settings = UnifiedRewardSettings(judge_wait_s=0, request_timeout_s=0.3)
    with judging(behave) as judge:
        scorer = UnifiedRewardScorer(settings.model_copy(update={"judge_url": judge.url}))
        app = create_app(scorer, "x", settings, add_routes=PassThrough(scorer.client, 2).add_routes)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
            for _ in range(LOST_AFTER):
                assert scorer.failure is None
                assert (await client.post("/v1/chat/completions", json=question)).status_code == 504
        assert SILENCE in scorer.failure


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_server_that_refuses_every_call_is_left_too(status):
    """Its list of models is right: the key, or the model, is refused where calls go."""
    behave = Judge()
    with judging(behave) as judge:
        async with gateway(unifiedreward, judge) as client:
            behave.reply = Reply("not you", status=status)
            lost = await client.post("/v1/score", json=body())
            assert lost.status_code == 503 and lost.headers["retry-after"] == "1"
            calls = judge.calls
            await until(lambda: judge.calls > calls + 1)  # asked and refused again
            assert f"the last with HTTP {status}" in (await client.get("/ready")).json()["error"]["message"]
            behave.reply = ALIVE
            await until(lambda: client.service.ready)


@pytest.mark.parametrize("end", ["data: [DONE]\n\n", ""])
async def test_streams_tell_of_the_engine_too(end):
    """A server that has begun an answer can only say in the stream that its engine died."""
    whole = 'data: {"choices": [{"index": 0, "delta": {"content": "4"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    dead = 'data: {"error": {"message": "EngineDeadError", "code": 500}}\n\n' + end
    replies = [*[dead] * (LOST_AFTER - 1), whole, *[dead] * LOST_AFTER]
    settings = UnifiedRewardSettings(judge_wait_s=0)
    scorer = UnifiedRewardScorer(settings)
    scorer.client._http._transport = httpx.MockTransport(
        lambda _request: httpx.Response(200, headers={"content-type": "text/event-stream"}, text=replies.pop(0))
    )
    app = create_app(scorer, "x", settings, add_routes=PassThrough(scorer.client, 2).add_routes)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
        while replies:
            assert scorer.failure is None
            answer = await client.post("/v1/chat/completions", json={"stream": True})
            assert answer.status_code == 200
    assert "up and answers no call" in scorer.failure


async def test_a_caller_who_asks_for_another_model_takes_nothing_from_others():
    settings = UnifiedRewardSettings(judge_wait_s=0)
    scorer = UnifiedRewardScorer(settings)
    scorer.client._http._transport = httpx.MockTransport(lambda _request: httpx.Response(404, json={"error": "model"}))
    app = create_app(scorer, "x", settings, add_routes=PassThrough(scorer.client, 2).add_routes)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
        for _ in range(LOST_AFTER + 1):
            assert (await client.post("/v1/chat/completions", json={})).status_code == 404
    assert scorer.failure is None


async def test_one_item_that_breaks_every_call_is_no_dead_engine():
    """It fails alone, and the service is ready for the next."""
    with judging(Judge()) as judge:
        async with gateway(unifiedreward, judge) as client:
            answer = await client.post("/v1/score", json=body("poison"))
            assert [each["error"]["code"] for each in answer.json()["results"]] == ["upstream"] * 3
            assert (await client.get("/ready")).status_code == 200


async def test_a_200_between_them_and_refusals_are_no_sign_of_a_dead_engine():
    behave = Judge()
    with judging(behave) as judge:
        client = JudgeClient(JudgeEndpoint(judge.url, "judge", attempts=1), JudgeMetrics())
        for reply in [*[DEAD] * (LOST_AFTER - 1), ALIVE, *[DEAD] * (LOST_AFTER - 1), *[Reply("no", status=400)] * 5]:
            behave.reply = reply
            await asyncio.gather(client.ask([], max_tokens=1, deadline=1e9), return_exceptions=True)
            assert client.failure is None
        behave.reply = DEAD
        await asyncio.gather(client.ask([], max_tokens=1, deadline=1e9), return_exceptions=True)
        assert client.failure is not None, "a refusal is not an answer"
        await client.aclose()


async def test_a_worker_whose_judge_is_dead_leaves_jobs_to_others(redis_server):
    behave = Judge()
    with judging(behave) as judge:
        async with (
            gateway(unifiedreward, judge, redis=redis_server.url, role="worker"),
            gateway(unifiedreward, judge, redis=redis_server.url, role="front") as front,
        ):
            behave.reply = DEAD
            assert (await front.post("/v1/score", json=body())).status_code == 200
            await until(lambda: not front.service.ready)
            assert "no live worker" in (await front.get("/ready")).json()["error"]["message"]
            behave.reply = ALIVE
            await until(lambda: front.service.ready)
            answer = await front.post("/v1/score", json=body())
    assert all(each["score"] is not None for each in answer.json()["results"])
