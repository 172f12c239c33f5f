"""What is passed on to the judge: callers who leave in the middle, and messages that name URLs."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging

import httpx
import pytest
from PIL import Image

from services.kit.app import create_app
from services.kit.judge.passthrough import PassThrough
from services.unifiedreward.scorer import UnifiedRewardScorer
from services.unifiedreward.settings import UnifiedRewardSettings

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
PICTURE = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture
def anyio_backend():
    return "asyncio"


class EventStream(httpx.AsyncByteStream):
    async def __aiter__(self):
        yield b"data: 1\n\n"
        await asyncio.sleep(60)


async def stream_for_ever(_request):
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=EventStream())


def gateway(transport):
    settings = UnifiedRewardSettings(request_timeout_s=5, judge_wait_s=0)
    scorer = UnifiedRewardScorer(settings)
    scorer.client._http._transport = transport
    return create_app(scorer, "unifiedreward", settings, add_routes=PassThrough(scorer.client, 2).add_routes)


async def test_a_caller_who_leaves_in_the_middle_of_a_stream_is_no_bug(caplog):
    app = gateway(httpx.MockTransport(stream_for_ever))
    arrived, sent = asyncio.Event(), []
    messages = iter([{"type": "http.request", "body": b'{"stream": true}'}])

    async def receive():
        message = next(messages, None)
        if message is None:
            await arrived.wait()
            return {"type": "http.disconnect"}
        return message

    async def send(message):
        sent.append(message)
        if message.get("body"):
            arrived.set()

    scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b""}
    scope |= {"headers": [(b"content-type", b"application/json")], "client": ("1.2.3.4", 1), "http_version": "1.1"}
    with caplog.at_level(logging.INFO):
        await asyncio.wait_for(app(scope, receive, send), 3)
    assert [message.get("body") for message in sent][:2] == [None, b"data: 1\n\n"]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://10.0.0.1/latest/meta-data"}},
        {"type": "image_url", "image_url": " https://host/a.png"},
        {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
        {"image_url": "HTTP://host/a.png"},
        {"type": "audio_url", "audio_url": {"url": ""}},
    ],
)
async def test_what_a_message_names_is_not_fetched(part):
    seen = []
    app = gateway(httpx.MockTransport(lambda request: seen.append(request) or httpx.Response(200, json={})))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
        body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, part]}]}
        refused = await client.post(PATH, json=body)
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "messages")
        assert "send their bytes as a data URL" in refused.json()["error"]["message"]
        assert (await client.post(PATH, content=b"{")).status_code == 400
    assert seen == []


async def test_pictures_in_a_message_and_urls_in_texts_and_tools_pass_unchanged():
    seen = []
    app = gateway(httpx.MockTransport(lambda request: seen.append(request.content) or httpx.Response(200, json={})))
    content = [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "see http://host/a.png"}]
    tool = {"type": "function", "function": {"name": "get", "parameters": {"properties": {"url": {"type": "string"}}}}}
    bodies = [{"messages": [{"role": "user", "content": content}], "tools": [tool]}, {"messages": "no list"}]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
        for body in bodies:
            assert (await client.post(PATH, json=body)).status_code == 200
    assert [json.loads(each) for each in seen] == bodies


def jpeg(*more):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
    data = buffer.getvalue()
    return data[:2] + b"".join(more) + data[2:]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (jpeg(*[b"\xff\xfe\x00\x02"] * 2000), "more than 1024 segments"),
        (jpeg().replace(b"\x00\x08\x00\x08", b"\xea\x60\xea\x60", 1), "60000x60000 pixels; the limit is 16777216"),
        (jpeg(), None),
        (jpeg()[:-20], None),  # for the judge to refuse
        (b"GIF89a", None),
    ],
)
async def test_a_picture_that_is_too_much_work_is_not_passed_on(data, problem):
    seen = []
    app = gateway(httpx.MockTransport(lambda request: seen.append(request) or httpx.Response(200, json={})))
    url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
        answer = await client.post(PATH, json=body)
    assert len(seen) == (problem is None)
    assert answer.status_code == (200 if problem is None else 422)
    assert problem is None or problem in answer.json()["error"]["message"]
