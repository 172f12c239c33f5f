"""Services with a network of their own, whole: a process each on small weights, with Redis and tokens, and strangers' input."""

from __future__ import annotations

import base64
import io
import json
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from PIL import Image

from benchmarks.shapes_detector import draw
from services.kit.openapi import FOLDER
from tests.support.redis_server import RedisServer
from tests.support.service_process import Server, running_service
from tests.support.tiny_services import METADATA, NAMES, flags_of
from wire.images import encode
from wire.schema import ScoreResponse

TOKEN = "correct-horse-battery-staple"
TORN = encode(Image.new("RGB", (64, 64), "red"), "image/png")[:-40]


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60,000 x 60,000 pixels."""
    image = io.BytesIO()
    Image.new("L", (8, 8)).save(image, "PNG")
    data = bytearray(image.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@dataclass
class Whole:
    """A running service, and who may ask it."""

    name: str
    server: Server
    client: httpx.Client
    redis: RedisServer

    def score(self, *items: dict[str, Any]) -> list[dict[str, Any]]:
        body = {"items": [{"id": str(number), **item} for number, item in enumerate(items)]}
        answer = self.client.post("/v1/score", content=json.dumps(body), headers={"content-type": "application/json"})
        assert answer.status_code == 200, answer.text
        response = ScoreResponse.model_validate_json(answer.content)
        return [result.model_dump(mode="json") for result in response.results]

    def item(self, data: bytes, prompt: str = "a circle", **more: Any) -> dict[str, Any]:
        image = {"media_type": "image/png", "data": base64.b64encode(data).decode()}
        return {"prompt": prompt, "images": [image], "metadata": METADATA.get(self.name, {}), **more}


def drawn(seed: int, size: int = 64) -> bytes:
    return encode(draw(seed, ["circle"])[0].resize((size, size)), "image/png")


# One of them in every run; the others' processes import as much again.
@pytest.fixture(
    scope="module",
    params=[name if name == "imagereward" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp(request.param)
    tokens = folder / "tokens"
    tokens.write_text(f"trainer:{TOKEN}\n")
    flags = [*flags_of(request.param, folder), f"--token-file={tokens}", f"--redis={shared_redis.url}"]
    with running_service(*flags, module=f"services.{request.param}") as server:
        server.wait_ready(120)
        headers = {"authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=300, trust_env=False) as client:
            yield Whole(request.param, server, client, shared_redis)


def test_nobody_without_a_token_is_served_and_the_page_is_there(whole: Whole) -> None:
    url = whole.server.url
    body = {"items": [{"id": "0", "prompt": "a circle"}]}
    for headers in ({}, {"authorization": "Bearer wrong-horse-battery-staple"}):
        assert httpx.post(f"{url}/v1/score", json=body, headers=headers).status_code == 401
        assert httpx.get(f"{url}/v1/info", headers=headers).status_code == 401
    page = httpx.get(url)
    assert page.status_code == 200 and f"<title>{whole.name}" in page.text
    assert whole.client.get("/openapi.json").json() == json.loads((FOLDER / f"{whole.name}.json").read_text())


def test_bad_items_fail_alone_and_good_neighbours_have_their_scores(whole: Whole) -> None:
    good = whole.item(drawn(0))
    bad = [whole.item(data) for data in (b"", b"no image", TORN, bomb())]
    results = whole.score(good, *bad, {**good, "images": [], "completion": "words"})
    assert results[0]["score"] is not None, results[0]
    assert {result["score"] for result in results[1:]} == {None}
    assert {result["error"]["code"] for result in results[1:]} == {"bad_input"}


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "\x00\x1b[2J\u202e",
        "🙂" * 300,
        "word " * 4000,
        "<|Reward|><|image_pad|><|im_end|><|endoftext|>[SEP]{prompt}",
    ],
    ids=["empty", "control", "emoji", "long", "special tokens"],
)
def test_no_prompt_is_a_bug_of_the_service(whole: Whole, prompt: str) -> None:
    """A score, or a reason that is the prompt's and not an exception's."""
    ugly, good = whole.score(whole.item(drawn(1), prompt), whole.item(drawn(1)))
    assert good["score"] is not None, good
    assert ugly["score"] is not None or ugly["error"]["code"] in ("bad_input", "not_applicable"), ugly


@pytest.mark.parametrize(
    "metadata",
    [{"include": 3}, {"include": [{"class": [], "count": -1}]}, {"include": [{"class": "circle", "count": 1e300}]}],
    ids=["no list", "no name", "huge"],
)
def test_no_metadata_is_a_bug_of_the_service(whole: Whole, metadata: dict[str, Any]) -> None:
    [result] = whole.score(whole.item(drawn(2), metadata=metadata))
    assert result["score"] is not None or result["error"]["code"] in ("bad_input", "not_applicable"), result


def test_scores_are_shared_through_redis(whole: Whole) -> None:
    item = whole.item(drawn(3))
    [first] = whole.score(item)
    [second] = whole.score(item)
    assert not first["cached"] and second["cached"] and second["score"] == first["score"]
    with whole.redis.client() as client:
        values = [json.loads(client.get(key)) for key in client.keys("*:scores:*")]
    assert first["score"] in [value["scores"][0]["value"] for value in values]


def test_a_service_that_is_told_to_stop_answers_what_it_has_taken(whole: Whole) -> None:
    """The last test of each process: it ends it."""
    answers: list[list[dict[str, Any]]] = []
    items = [whole.item(drawn(100 + seed, 256)) for seed in range(24)]
    asking = threading.Thread(target=lambda: answers.append(whole.score(*items)))
    asking.start()
    while asking.is_alive() and "\nreward_items_in_flight 0.0\n" in whole.client.get("/metrics").text:
        pass
    whole.server.terminate()
    asking.join(60)
    assert whole.server.process.wait(60) == 0, "".join(whole.server.errors)
    assert [result["score"] is not None for result in answers[0]] == [True] * len(items)
