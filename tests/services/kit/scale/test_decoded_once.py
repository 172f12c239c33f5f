"""From a request to the scorer an image is decoded once, and so is the base64 it came in: once a process that needs its pixels."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from PIL import Image

from services.kit.testing.fakes import PromptLengthScorer
from tests.support.redis_services import until
from wire.images import encode

IMAGE = Image.effect_noise((32, 24), 50).convert("RGB")
TYPES = {"jpeg": "image/jpeg", "rgb8": "image/x-rgb8"}


@pytest.fixture
def decodings(monkeypatch):
    """How often base64 was read, and pixels were made of bytes, in this process."""
    seen = Counter()

    def watch(owner, name, what):
        inner = getattr(owner, name)

        def counting(*args, **kwargs):
            seen[what] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    watch(binascii, "a2b_base64", "base64")
    watch(Image, "_getdecoder", "images")  # all of Pillow's ways to pixels pass here, of files and of raw bytes
    return seen


def request_of(kind, form):
    """What the client posts: two items of one image each, which differ."""
    encoded = [encode(image, TYPES[kind]) for image in (IMAGE, IMAGE.transpose(Image.Transpose.ROTATE_180))]
    sized = {"media_type": TYPES[kind], "width": 32, "height": 24}
    sources = [
        {"data": base64.b64encode(data).decode()} if form == "base64" else {"part": f"i{number}"}
        for number, data in enumerate(encoded)
    ]
    items = [{"id": str(n), "prompt": "ab", "images": [sized | source]} for n, source in enumerate(sources)]
    if form == "base64":
        return {"json": {"items": items}}
    parts = {f"i{number}": (f"i{number}", data) for number, data in enumerate(encoded)}
    return {"files": {"request": (None, json.dumps({"items": items})), **parts}}


@pytest.mark.anyio
@pytest.mark.parametrize("roles", [["memory"], ["all"], ["front", "worker"]], ids="-".join)
@pytest.mark.parametrize("form", ["multipart", "base64"])
@pytest.mark.parametrize("kind", ["jpeg", "rgb8"])
async def test_an_image_is_decoded_once_where_its_pixels_are_needed(
    kind, form, roles, running, redis_server, decodings
):
    """A front decodes to refuse what is damaged before it waits in a queue; its worker is another process."""
    request = request_of(kind, form)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(running(PromptLengthScorer(), wait_ready=False, **settings))
            for role in roles
            for settings in [{} if role == "memory" else {"redis": redis_server.url, "role": role}]
        ]
        await until(lambda: clients[0].app.state.service.ready)
        decodings.clear()
        answer = await clients[0].post("/v1/score", timeout=30, **request)
    assert answer.status_code == 200, answer.text
    assert [(each["score"], each["components"]) for each in answer.json()["results"]] == [(2, {"images": 1})] * 2
    assert decodings == {"images": 2 * len(roles)} | ({"base64": 2} if form == "base64" else {})


@pytest.mark.anyio
@pytest.mark.parametrize("redis", [False, True])
async def test_base64_that_is_none_costs_its_own_item_alone(redis, running, redis_server, decodings):
    good = base64.b64encode(encode(IMAGE, "image/jpeg")).decode()
    items = [
        {"id": str(n), "prompt": "ab", "images": [{"media_type": "image/jpeg", "data": data} for data in images]}
        for n, images in enumerate([[good], [good, "a?b"], [good, good]])
    ]
    async with running(PromptLengthScorer(), **({"redis": redis_server.url} if redis else {})) as client:
        answer = await client.post("/v1/score", json={"items": items}, timeout=30)
    results = answer.json()["results"]
    assert [each["score"] for each in results] == [2, None, 2]
    assert results[1]["error"]["code"] == "bad_input"
    assert results[1]["error"]["message"].startswith("images.1: `data` is not base64: remove '?'")
    assert decodings["images"] == 3
