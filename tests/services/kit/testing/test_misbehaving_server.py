"""The misbehaving server does what it was asked to, and only when it was."""

from __future__ import annotations

import json
import math

import httpx
import pytest
from pydantic import ValidationError

from services.kit.testing.misbehaving import MisbehavingSettings, create_misbehaving_app
from wire.schema import ScoreResponse

pytestmark = pytest.mark.anyio

REQUEST = {"items": [{"id": "a", "prompt": "x", "completion": "c"}, {"id": "b", "prompt": "xy", "completion": "c"}]}


@pytest.fixture
async def client():
    app = create_misbehaving_app(MisbehavingSettings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        yield client


async def choose(client, fault, every=1):
    (await client.post("/fault", json={"fault": fault, "every": every})).raise_for_status()


async def score(client):
    return await client.post("/v1/score", json=REQUEST)


async def test_without_a_fault_it_keeps_the_contract(client):
    answer = ScoreResponse.model_validate_json((await score(client)).content)
    assert {r.id: r.score for r in answer.results} == {"a": 1, "b": 2}
    assert (await client.get("/ready")).status_code == 200
    assert (await client.get("/v1/info")).json()["default_reward"] == "prompt_length"


async def test_multipart_is_understood(client):
    answer = await client.post("/v1/score", files={"request": (None, json.dumps(REQUEST), "application/json")})
    assert [r["score"] for r in answer.json()["results"]] == [1, 2]


@pytest.mark.parametrize(
    ("fault", "ids"),
    [
        ("short_list", ["a"]),
        ("long_list", ["a", "b", "nobody-asked"]),
        ("wrong_ids", ["a", "nobody-asked"]),
        ("duplicate_ids", ["a", "b", "b"]),
    ],
)
async def test_lists_that_do_not_fit(client, fault, ids):
    await choose(client, fault)
    assert [r["id"] for r in (await score(client)).json()["results"]] == ids


@pytest.mark.parametrize(("fault", "check"), [("nan", math.isnan), ("infinity", math.isinf)])
async def test_numbers_json_does_not_have(client, fault, check):
    await choose(client, fault)
    answer = await score(client)
    assert check(json.loads(answer.content)["results"][-1]["score"])
    with pytest.raises(ValidationError):
        ScoreResponse.model_validate_json(answer.content)


async def test_null_without_a_reason_breaks_the_contract(client):
    await choose(client, "null_without_error")
    with pytest.raises(ValidationError, match="exactly one of"):
        ScoreResponse.model_validate_json((await score(client)).content)


@pytest.mark.parametrize("fault", ["garbage", "wrong_type"])
async def test_answers_that_are_not_json(client, fault):
    await choose(client, fault)
    with pytest.raises(ValueError):
        json.loads((await score(client)).content)


@pytest.mark.parametrize(("fault", "status"), [("status_500", 500), ("status_503", 503), ("overloaded", 429)])
async def test_statuses(client, fault, status):
    await choose(client, fault)
    answer = await score(client)
    assert answer.status_code == status
    assert ("retry-after" in answer.headers) == (status == 429)


async def test_every_third_request(client):
    await choose(client, "status_500", every=3)
    assert [(await score(client)).status_code for _ in range(6)] == [200, 200, 500, 200, 200, 500]


def test_faults_of_the_connection(serving):
    with serving("--fault", "disconnect", module="services.kit.testing.misbehaving") as server:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(server.url + "/v1/score", json=REQUEST)
        httpx.post(server.url + "/fault", json={"fault": "never"}).raise_for_status()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/v1/score", json=REQUEST, timeout=0.3)
        httpx.post(server.url + "/fault", json={"fault": "die"}).raise_for_status()
        with pytest.raises(httpx.TransportError):
            httpx.post(server.url + "/v1/score", json=REQUEST)
        assert server.process.wait(timeout=5) == -9
