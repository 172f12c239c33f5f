"""The server's side of contract v1, for any input: one of the two bodies, never anything else."""

from __future__ import annotations

import asyncio
import base64
import json

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.kit.app import create_app
from services.kit.settings import ServiceSettings
from services.kit.testing.fakes import FailEveryNthScorer
from wire.images import encode
from wire.schema import ErrorBody, ScoreResponse

STATUSES = {200, 400, 404, 405, 408, 413, 415, 422, 429, 503, 504}
PNG = base64.b64encode(encode(Image.new("RGB", (3, 2), "red"), "image/png")).decode()


def json_trees(numbers):
    return st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | numbers | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )


JSON = json_trees(st.floats())
FINITE = json_trees(st.floats(allow_nan=False, allow_infinity=False))

# Valid requests whose images may be unreadable: always 200, the unreadable ones with an error of their own.
GOOD_IMAGE = st.fixed_dictionaries(
    {
        "media_type": st.sampled_from(["image/png", "image/webp", "image/jpeg", "image/x-rgb8"]),
        "data": st.sampled_from([PNG, PNG, PNG[:-8], "", "AAAA", "%%%"]) | st.text(max_size=8),
        "width": st.integers(1, 65_536),
        "height": st.integers(1, 65_536),
    }
)
GOOD_ITEM = st.fixed_dictionaries(
    {"id": st.text(min_size=1, max_size=6), "prompt": st.text(max_size=30), "completion": st.text(max_size=10)},
    optional={
        "group_id": st.none() | st.text(min_size=1, max_size=4),
        "images": st.lists(GOOD_IMAGE, max_size=3),
        "source_images": st.none() | st.lists(GOOD_IMAGE, max_size=2),
        "targets": st.none() | st.lists(st.text(max_size=5), max_size=3),
        "metadata": st.dictionaries(st.text(max_size=5), FINITE, max_size=3),
    },
)
GOOD_REQUEST = st.fixed_dictionaries(
    {"items": st.lists(GOOD_ITEM, min_size=1, max_size=5, unique_by=lambda item: item["id"])},
    optional={
        "reward": st.none() | st.just("fail_every_nth"),
        "deadline_ms": st.none() | st.integers(2000, 5000),
        "request_id": st.none() | st.text(min_size=1, max_size=10),
    },
)

# One thing wrong with them, or right by luck.
SPOILT_ITEM = st.one_of(
    st.fixed_dictionaries({name: JSON})
    for name in ("id", "group_id", "prompt", "images", "source_images", "completion", "targets", "metadata", "surprise")
)
SPOILT_REQUEST = st.one_of(
    st.tuples(GOOD_REQUEST, SPOILT_ITEM).map(
        lambda p: {**p[0], "items": [p[0]["items"][0] | p[1], *p[0]["items"][1:]]}
    ),
    st.tuples(GOOD_REQUEST, st.sampled_from(["items", "reward", "deadline_ms", "request_id", "surprise"]), JSON).map(
        lambda p: p[0] | {p[1]: p[2]}
    ),
)


def to_json(tree):
    return json.dumps(tree).encode()


async def ask(bodies):
    app = create_app(FailEveryNthScorer(every=3), "fuzzed", ServiceSettings())
    async with app.router.lifespan_context(app):
        while not app.state.service.ready:
            await asyncio.sleep(0.001)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {"content-type": "application/json"}
            return [await client.post("/v1/score", content=body, headers=headers) for body in bodies]


def check(body, answer):
    assert answer.status_code in STATUSES, (answer.status_code, body)
    assert answer.headers["content-type"] == "application/json"
    if answer.status_code == 200:
        response = ScoreResponse.model_validate_json(answer.content)
        assert [r.id for r in response.results] == [item["id"] for item in json.loads(body)["items"]]
    else:
        assert ErrorBody.model_validate_json(answer.content).error.message


@settings(max_examples=30, deadline=None)
@given(trees=st.lists(GOOD_REQUEST, min_size=1, max_size=8))
def test_valid_requests_get_one_result_per_id(trees):
    bodies = [to_json(tree) for tree in trees]
    for body, answer in zip(bodies, asyncio.run(ask(bodies)), strict=True):
        assert answer.status_code == 200, (answer.text, body)
        check(body, answer)


@settings(max_examples=30, deadline=None)
@given(trees=st.lists(SPOILT_REQUEST, min_size=1, max_size=8))
def test_nearly_valid_requests_get_one_of_the_two_bodies(trees):
    bodies = [to_json(tree) for tree in trees]
    for body, answer in zip(bodies, asyncio.run(ask(bodies)), strict=True):
        check(body, answer)


@settings(max_examples=20, deadline=None)
@given(bodies=st.lists(JSON.map(to_json) | st.binary(max_size=60), min_size=1, max_size=8))
def test_anything_at_all(bodies):
    for body, answer in zip(bodies, asyncio.run(ask(bodies)), strict=True):
        check(body, answer)
