"""Asking a judge: what is sent, what is tried again, and how each way of not getting an answer is told apart."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from PIL import Image

from services.kit.judge.client import JudgeClient, JudgeEndpoint, JudgeError
from services.kit.judge.content import image_part, text_part
from services.kit.judge.metrics import JudgeMetrics
from services.kit.judge.templates import load_template, own_template
from services.kit.testing.scripted_judge import Reply, answer_about, read_question
from tests.support.gated import until
from tests.support.judges import judging
from tests.support.ports import free_port
from wire.schema import ErrorCode

pytestmark = pytest.mark.anyio


def soon(seconds=10.0):
    return time.monotonic() + seconds


@pytest.fixture
async def client_of():
    clients = []

    def make(judge, **more):
        url = judge if isinstance(judge, str) else judge.url
        clients.append(JudgeClient(JudgeEndpoint(url, **{"model": "judge", **more}), JudgeMetrics()))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


async def ask(client, text="which?", images=(), **more):
    content = [image_part(image, "png") for image in images] + [text_part(text)]
    return await client.ask(content, **{"max_tokens": 7, "deadline": soon(), **more})


async def failure_of(call):
    with pytest.raises(JudgeError) as caught:
        await call
    return caught.value


async def test_images_come_in_order_before_the_text_and_decoding_is_greedy(client_of):
    colours = ["red", "lime", "blue"]
    with judging("hello") as judge:
        client = client_of(judge, extra={"chat_template_kwargs": {"enable_thinking": False}})
        schema = {"type": "object"}
        answer = await ask(client, images=[Image.new("RGB", (4, 6), colour) for colour in colours], schema=schema)
        assert (answer.text, answer.truncated, answer.attempts) == ("hello", False, 1)
    [question] = judge.questions
    assert [image.getpixel((0, 0)) for image in question.images] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    body = question.body
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url"] * 3 + ["text"]
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 7, "judge")
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


async def test_a_cut_answer_says_so(client_of):
    with judging(lambda _question: Reply("and then", finish_reason="length")) as judge:
        assert (await ask(client_of(judge))).truncated


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again(status, client_of):
    replies = iter([Reply("busy", status=status), Reply("fine")])
    with judging(lambda _question: next(replies)) as judge:
        answer = await ask(client_of(judge))
    assert (answer.text, answer.attempts) == ("fine", 2)


async def test_tries_end(client_of):
    with judging(lambda _question: Reply("broken engine", status=500)) as judge:
        error = await failure_of(ask(client_of(judge, attempts=2)))
        assert judge.calls == 2
    assert error.code is ErrorCode.UPSTREAM and "500: broken engine" in str(error)


async def test_a_refusal_is_final_and_keeps_the_servers_words(client_of):
    with judging(lambda _question: Reply("At most 1 image(s) may be provided", status=400)) as judge:
        error = await failure_of(ask(client_of(judge)))
        assert judge.calls == 1
    assert error.code is ErrorCode.UPSTREAM and "At most 1 image(s)" in str(error)


async def test_no_answer_by_the_deadline_is_a_timeout(client_of):
    with judging(lambda _question: Reply("late", delay_s=5)) as judge:
        error = await failure_of(ask(client_of(judge), deadline=soon(0.2)))
    assert error.code is ErrorCode.TIMEOUT


async def test_a_server_that_hangs_is_given_up(client_of):
    with judging(lambda _question: Reply("late", delay_s=5)) as judge:
        error = await failure_of(ask(client_of(judge, call_timeout_s=0.1, attempts=2)))
        assert judge.calls == 2
    assert error.code is ErrorCode.TIMEOUT


async def test_calls_live_through_a_restart_of_the_server(client_of):
    port = free_port()
    client = client_of(f"http://127.0.0.1:{port}")
    calls = [asyncio.ensure_future(ask(client)) for _ in range(5)]
    await until(lambda: client.failure is not None)
    assert client.failure is not None and str(port) in client.failure
    assert not any(call.done() for call in calls)
    with judging("back", port=port):
        assert {(await call).text for call in calls} == {"back"}
    assert client.failure is None


async def test_no_more_calls_at_a_time_than_asked_and_all_slots_used(client_of):
    with judging(lambda _question: Reply("x", delay_s=0.05)) as judge:
        client = client_of(judge, concurrency=3)
        await asyncio.gather(*(ask(client) for _ in range(9)))
    assert judge.at_once == 3


async def test_a_cancelled_call_gives_its_slot_back(client_of):
    with judging(lambda question: Reply("x", delay_s=5 if question.text == "slow" else 0)) as judge:
        client = client_of(judge, concurrency=1)
        slow = asyncio.ensure_future(ask(client, "slow"))
        await until(lambda: judge.calls == 1)
        slow.cancel()
        assert (await ask(client, "fast")).text == "x"


async def test_check_names_the_remedy(client_of):
    with judging("x", model="other") as judge:
        error = await failure_of(client_of(judge).check())
        assert "serves other, not 'judge'" in str(error)
        await client_of(judge, model="other").check()
    error = await failure_of(client_of(judge).check())
    assert "no judge answers" in str(error) and "start it" in str(error)


async def test_recover_notices_that_the_server_is_back(client_of):
    port = free_port()
    client = client_of(f"http://127.0.0.1:{port}")
    await failure_of(ask(client, deadline=soon(1.5)))
    assert client.failure is not None
    await client.recover()
    assert client.failure is not None
    with judging("x", port=port):
        await client.recover()
        assert client.failure is None


def test_the_scripted_judge_sees_the_brighter_image():
    dark, light = Image.new("RGB", (8, 8), "black"), Image.new("RGB", (8, 8), "white")
    body = {"messages": [{"role": "user", "content": [image_part(dark, "jpeg"), image_part(light, "jpeg")]}]}
    assert answer_about("Image {brighter}, {brightness}", read_question(body)) == "Image 2, 0.0000"


@pytest.mark.parametrize(("mode", "colour", "shown"), [("RGBA", (255, 0, 0, 0), 255), ("I;16", 25_700, 100)])
def test_the_judge_is_shown_rgb_on_white(mode, colour, shown):
    part = image_part(Image.new(mode, (2, 2), colour), "png")
    [image] = read_question({"messages": [{"role": "user", "content": [part]}]}).images
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (shown, shown, shown)


def test_templates_are_read_byte_for_byte(tmp_path):
    file = tmp_path / "t.txt"
    file.write_bytes(b"  judge {this}: <<PROMPT>>\r\n   ")
    template = load_template(file, {})
    assert template.fill('a "{x}" <b>') == '  judge {this}: a "{x}" <b>\r\n   '
    assert template.name == "custom"
    assert load_template(file, {template.sha256: "published"}).name == "published"
    assert own_template("a").name == "own"
    with pytest.raises(ValueError, match="cannot be read"):
        load_template(tmp_path / "missing", {})


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, json={"choices": []}),
        httpx.Response(200, content=b"[" * 200_000),
        httpx.Response(400, content=b"[" * 200_000),
        httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip")),
    ],
)
async def test_an_answer_that_is_none_is_an_upstream_failure_of_its_call(response):
    client = JudgeClient(JudgeEndpoint("http://judge", "judge"), JudgeMetrics())
    client._http._transport = httpx.MockTransport(lambda _request: response)
    with pytest.raises(JudgeError) as caught:
        await client.ask([], max_tokens=1, deadline=time.monotonic() + 5)
    assert caught.value.code is ErrorCode.UPSTREAM
    await client.aclose()
