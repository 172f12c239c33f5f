"""Only an answer that came to its own end counts: any other is asked for again, fails, and is never kept."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from PIL import Image

from services.eval.judge import Judgement, JudgeMethod, Missing, judge_image
from services.eval.prompting import load_instructions
from services.eval.scorer import prompt_of
from services.kit.app import create_app
from services.kit.judge.client import JudgeClient, JudgeEndpoint, JudgeError
from services.kit.judge.metrics import JudgeMetrics
from services.kit.judge.passthrough import PassThrough
from services.kit.scorer import Item
from services.kit.testing.scripted_judge import Reply
from services.unifiedreward.scorer import UnifiedRewardScorer
from services.unifiedreward.settings import UnifiedRewardSettings
from tests.support.gateways import score_request
from tests.support.judges import judging
from tests.support.redis_services import until
from wire.schema import ErrorCode

pytestmark = pytest.mark.anyio

BROKEN_OFF = ["abort", "error", "tool_calls", "content_filter", "repetition", ""]
POINTS = "Alignment Score (1-5): 4{}\nCoherence Score (1-5): 4\nStyle Score (1-5): 4"
HALF, WHOLE = POINTS.format(""), POINTS.format(".9")
CHAT = "/v1/chat/completions"


def soon(seconds=10.0):
    return time.monotonic() + seconds


async def ask(judge, **more):
    client = JudgeClient(JudgeEndpoint(judge.url, "judge", **more), JudgeMetrics())
    try:
        return await client.ask([], max_tokens=9, deadline=soon())
    finally:
        await client.aclose()


@pytest.mark.parametrize("reason", BROKEN_OFF)
async def test_an_answer_that_was_broken_off_is_asked_for_again(reason):
    replies = iter([Reply("4.", reason), Reply("4.9")])
    with judging(lambda _question: next(replies)) as judge:
        answer = await ask(judge)
    assert (answer.text, answer.attempts, answer.truncated) == ("4.9", 2, False)


@pytest.mark.parametrize("reason", BROKEN_OFF)
async def test_tries_end_and_the_reason_is_named(reason):
    with judging(lambda _question: Reply("4.", reason)) as judge:
        with pytest.raises(JudgeError, match=rf"broke its answer off \(finish_reason '{reason}'\)") as caught:
            await ask(judge, attempts=2)
        assert judge.calls == 2
    assert caught.value.code is ErrorCode.UPSTREAM


@pytest.mark.parametrize("reason", ["stop", None])
async def test_stop_and_no_reason_at_all_are_ends(reason):
    with judging(lambda _question: Reply("4.9", reason)) as judge:
        answer = await ask(judge)
        assert judge.calls == 1
    assert (answer.text, answer.truncated) == ("4.9", False)


async def scored(client, body):
    answer = await client.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


@pytest.mark.parametrize("reason", ["abort", "length"])
async def test_half_a_number_is_neither_a_score_nor_kept(reason):
    """4.9 cut inside gives 4.0 for the same three lines; the next request gets the whole."""
    replies = [Reply(HALF, reason)]
    with judging(lambda _question: replies[-1]) as judge:
        fields = {"judge_url": judge.url, "model": "judge", "family": "v2", "attempts": 1, "check_model": False}
        settings = UnifiedRewardSettings(**fields)
        app = create_app(UnifiedRewardScorer(settings), "unifiedreward", settings)
        async with app.router.lifespan_context(app), client_of(app) as client:
            await until(lambda: app.state.service.ready)
            body = score_request([Image.new("RGB", (8, 8))], "a lamp", reward="pointwise")
            [first] = await scored(client, body)
            replies.append(Reply(WHOLE))
            [second], [third] = await scored(client, body), await scored(client, body)
    assert first["score"] is None
    assert first["error"]["code"] == ("truncated" if reason == "length" else "upstream")
    assert (second["score"], second["cached"]) == (pytest.approx(4.3), False)
    assert (third["score"], third["cached"]) == (pytest.approx(4.3), True)


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost")


@pytest.mark.parametrize("reason", ["abort", "length"])
async def test_the_eval_judge_reads_no_verdicts_out_of_half_an_answer(reason):
    points = {"testpoints": ["Style"], "descriptions": ["ink"]}
    item = Item("a", "a cat", metadata=points)
    replies = iter([Reply("<score>[0]</score> because", reason), Reply("<score>[1]</score>")])
    with judging(lambda _question: next(replies, Reply("<score>[0]</score>", reason))) as judge:
        client = JudgeClient(JudgeEndpoint(judge.url, "judge", attempts=2), JudgeMetrics())
        method = JudgeMethod(load_instructions(), parse_retries=1)
        image = Image.new("RGB", (8, 8))
        first, second = [
            await judge_image(client, JudgeMetrics(), method, image, prompt_of(item), soon()) for _ in range(2)
        ]
        await client.aclose()
    assert isinstance(first, Judgement) and first.verdicts == (1,)
    assert isinstance(second, Missing)
    assert second.code is (ErrorCode.TRUNCATED if reason == "length" else ErrorCode.UPSTREAM)


# --- what is passed on ---


def passing(respond):
    settings = UnifiedRewardSettings(request_timeout_s=5, judge_wait_s=0)
    scorer = UnifiedRewardScorer(settings)
    scorer.client._http._transport = httpx.MockTransport(respond)
    return client_of(create_app(scorer, "x", settings, add_routes=PassThrough(scorer.client, 2).add_routes))


def completion(reason, **more):
    return {"choices": [{"index": 0, "finish_reason": reason, "message": {"content": "4."}, **more}]}


@pytest.mark.parametrize("reason", ["abort", "error", "", 7])
async def test_half_an_answer_is_not_passed_on(reason):
    async with passing(lambda _request: httpx.Response(200, json=completion(reason))) as client:
        answer = await client.post(CHAT, json={})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert f"broke its answer off (finish_reason {reason!r})" in answer.json()["error"]["message"]


@pytest.mark.parametrize("reason", ["stop", None, "length", "tool_calls", "function_call", "content_filter"])
async def test_ends_that_a_caller_asks_for_are_passed_on(reason):
    async with passing(lambda _request: httpx.Response(200, json=completion(reason))) as client:
        answer = await client.post(CHAT, json={})
    assert (answer.status_code, answer.json()) == (200, completion(reason))


class Events(httpx.AsyncByteStream):
    def __init__(self, chunks):
        self._chunks = chunks

    async def __aiter__(self):
        for chunk in self._chunks:
            yield chunk


async def streamed(chunks):
    def respond(_request):
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Events(chunks))

    async with passing(respond) as client:
        answer = await client.post(CHAT, json={"stream": True})
    return answer.text


def event(text, reason=None):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def error_in(text):
    return json.loads(text.strip().splitlines()[-1].removeprefix("data: "))["error"]["message"]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("end", ["stop", "length"])
async def test_a_whole_stream_passes_byte_for_byte_however_it_is_cut(size, end):
    whole = event("4.") + b": a comment\r\n\r\n" + event("9", end) + b"data: [DONE]\n\n"
    chunks = [whole[start : start + size] for start in range(0, len(whole), size)]
    assert await streamed(chunks) == whole.decode()


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_a_stream_that_is_broken_off_ends_with_an_error(size):
    whole = event("4.") + event("", "abort") + b"data: [DONE]\n\n"
    text = await streamed([whole[start : start + size] for start in range(0, len(whole), size)])
    assert "broke its answer off (finish_reason 'abort')" in error_in(text)
    assert "[DONE]" not in text and '"abort"' not in text


async def test_a_stream_without_an_end_ends_with_an_error():
    text = await streamed([event("4.")])
    assert text.startswith(event("4.").decode()) and "ended in the middle" in error_in(text)
