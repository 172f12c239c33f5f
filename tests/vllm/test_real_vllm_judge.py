"""`JudgeClient` against a real vLLM server: order of images, grammar, limits, truncation, a killed server.

The model's weights are random, so what it says means nothing; but it is the real architecture, and transformers running
the same weights says which tokens follow from which images in which order.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from services.kit.judge.client import JudgeClient, JudgeEndpoint, JudgeError
from services.kit.judge.content import image_part, text_part
from services.kit.judge.metrics import JudgeMetrics
from tests.support.tiny_qwen3vl import Reference
from tests.support.vllm_server import START_TIMEOUT_S
from wire.schema import ErrorCode

pytestmark = [pytest.mark.anyio, pytest.mark.vllm, pytest.mark.slow]

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
RED = Image.new("RGB", (64, 64), (200, 40, 10))
QUESTION = "which is better?"
NUM_TOKENS = 16


@pytest.fixture
async def judge(vllm):
    client = JudgeClient(JudgeEndpoint(vllm.url, "judge", concurrency=64), JudgeMetrics())
    yield client
    await client.aclose()


@pytest.fixture(scope="module")
def reference(checkpoint):
    return Reference(checkpoint)


async def ask(judge, images, text=QUESTION, *, within_s=60.0, **more):
    content = [image_part(image, "png") for image in images] + [text_part(text)]
    return await judge.ask(content, **{"max_tokens": NUM_TOKENS, "deadline": time.monotonic() + within_s, **more})


async def failure_of(call):
    with pytest.raises(JudgeError) as caught:
        await call
    return caught.value


def ask_bare(vllm, images, **more):
    """The same question without our client."""
    content = [image_part(image, "png") for image in images] + [text_part(QUESTION)]
    body = {"model": "judge", "messages": [{"role": "user", "content": content}], "temperature": 0, **more}
    response = httpx.post(f"{vllm.url}/v1/chat/completions", json=body, timeout=300, trust_env=False)
    return response.raise_for_status().json()["choices"][0]


@pytest.mark.parametrize("images", [[NOISE, RED], [RED, NOISE], [NOISE], [RED, RED]], ids=["AB", "BA", "A", "BB"])
async def test_the_model_gets_these_images_in_this_order(vllm, judge, reference, images):
    """Tokens and log-probabilities are those of transformers for the images in this order, and the client's text too."""
    tokens, logps = reference.answer(images, QUESTION, NUM_TOKENS)
    direct = ask_bare(vllm, images, max_tokens=NUM_TOKENS, logprobs=True, return_token_ids=True)
    assert direct["token_ids"] == tokens
    assert [each["logprob"] for each in direct["logprobs"]["content"]] == pytest.approx(logps, abs=1e-3)
    assert (await ask(judge, images)).text == direct["message"]["content"]


async def test_another_order_is_another_answer(judge):
    assert (await ask(judge, [NOISE, RED])).text != (await ask(judge, [RED, NOISE])).text


async def test_the_same_question_has_the_same_answer_in_any_company(judge):
    """Temperature 0: also when other questions share the batch."""
    alone = await ask(judge, [NOISE, RED])
    crowd = await asyncio.gather(*(ask(judge, [NOISE, RED], QUESTION + "?" * (n % 4)) for n in range(32)))
    assert {answer.text for answer in crowd[::4]} == {alone.text}


SCHEMA = {
    "type": "object",
    "properties": {
        "winner": {"enum": ["Image 1", "Image 2"]},
        "scores": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 9},
            "minItems": 2,
            "maxItems": 2,
        },
    },
    "required": ["winner", "scores"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("images", [[NOISE, RED], [RED, NOISE], [RED]], ids=["AB", "BA", "B"])
async def test_a_json_schema_is_followed(judge, images):
    answer = await ask(judge, images, schema=SCHEMA, max_tokens=100)
    tree = json.loads(answer.text)
    assert not answer.truncated
    assert set(tree) == {"winner", "scores"} and tree["winner"] in ("Image 1", "Image 2")
    assert len(tree["scores"]) == 2 and all(score in range(10) for score in tree["scores"])


async def test_an_answer_cut_at_max_tokens_is_truncated(judge):
    answer = await ask(judge, [RED], schema=SCHEMA, max_tokens=5)
    assert answer.truncated and answer.completion_tokens == 5
    with pytest.raises(ValueError):
        json.loads(answer.text)


async def test_too_many_images_fail_in_the_servers_words_and_neighbours_do_not_notice(judge):
    good, bad, also_good = await asyncio.gather(
        ask(judge, [NOISE, RED]), ask(judge, [NOISE, RED, NOISE]), ask(judge, [RED, NOISE]), return_exceptions=True
    )
    assert isinstance(bad, JudgeError) and bad.code is ErrorCode.UPSTREAM
    assert "400: At most 2 image(s) may be provided in one prompt" in str(bad)
    assert len(good.text) > 0 and len(also_good.text) > 0


async def test_a_question_too_long_for_the_model_fails_in_the_servers_words(judge):
    error = await failure_of(ask(judge, [RED], "x" * 5000))
    assert error.code is ErrorCode.UPSTREAM and "maximum context length is 4096 tokens" in str(error)


async def test_a_wrong_model_name_is_found_at_the_start(vllm, judge):
    await judge.check()
    other = JudgeClient(JudgeEndpoint(vllm.url, "UnifiedReward"), JudgeMetrics())
    error = await failure_of(other.check())
    assert "serves judge, not 'UnifiedReward'" in str(error) and "--served-model-name UnifiedReward" in str(error)
    assert "404: The model `UnifiedReward` does not exist" in str(await failure_of(ask(other, [RED])))
    await other.aclose()


async def test_a_url_in_a_message_is_not_fetched(vllm):
    """vLLM reads images at any address by default; `--allowed-media-domains` is what stops it."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/image.png"
        content = [{"type": "image_url", "image_url": {"url": url}}]
        body = {"model": "judge", "messages": [{"role": "user", "content": content}]}
        async with httpx.AsyncClient(trust_env=False) as http:
            response = await http.post(f"{vllm.url}/v1/chat/completions", json=body, timeout=30)
        assert response.status_code == 400 and "allowed domains" in response.text
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.fixture
async def endless(vllm):
    """A judge that always writes until it is cut."""
    client = JudgeClient(JudgeEndpoint(vllm.url, "judge", extra={"ignore_eos": True}), JudgeMetrics())
    yield client
    await client.aclose()


async def test_calls_in_flight_live_through_a_killed_and_restarted_server(vllm, endless):
    """SIGKILL of all of vLLM's processes while it writes: every call has, within its deadline, the answer it would
    have had."""
    images = [[NOISE, RED], [RED, NOISE], [NOISE], [RED]]
    long = {"max_tokens": 1200, "within_s": START_TIMEOUT_S + 50}
    before = await asyncio.gather(*(ask(endless, each, **long) for each in images))
    calls = [asyncio.ensure_future(ask(endless, each, **long)) for each in images]
    await asyncio.sleep(0.4)  # 1200 steps take seconds
    vllm.kill()
    async with asyncio.timeout(30):
        while endless.failure is None:
            await asyncio.sleep(0.1)
    assert not any(call.done() for call in calls)
    await asyncio.to_thread(vllm.start)
    after = await asyncio.gather(*calls)
    assert [answer.text for answer in after] == [answer.text for answer in before]
    assert all(answer.attempts > 1 for answer in after)
    assert endless.failure is None
