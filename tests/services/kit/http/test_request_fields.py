"""Every field of a request, broken: the answer names the field and says what is wrong."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from services.kit.testing.fakes import PromptLengthScorer
from wire.images import encode

pytestmark = pytest.mark.anyio

PNG = {"media_type": "image/png", "data": "AAAA"}


def with_item(**change):
    return {"items": [{"id": "a", "prompt": "p", "completion": "c"} | change]}


def with_image(**change):
    return with_item(images=[PNG | change])


CASES = {
    "items missing": ({}, "items", "Field required"),
    "items empty": ({"items": []}, "items", "at least 1"),
    "items not a list": ({"items": {}}, "items", "valid list"),
    "item not an object": ({"items": [1]}, "items.0", "valid dictionary"),
    "body not an object": ([], None, "valid dictionary"),
    "unknown field": (with_item() | {"itemz": 1}, "itemz", "no such field; did you mean `items`?"),
    "unknown field of an item": (with_item(promtp="p"), "items.0.promtp", "did you mean `prompt`?"),
    "the misspelt one of a missing field": (
        {"items": [{"id": "a", "Promt": "p", "completion": "c"}]},
        "items.0.Promt",
        "no such field; did you mean `prompt`? (and 1 more)",
    ),
    "a field in another spelling": (with_item(groupId="g"), "items.0.groupId", "did you mean `group_id`?"),
    "one image where images go": ({"items": [{"id": "a", "image": [PNG]}]}, "items.0.image", "did you mean `images`?"),
    "unknown field of an image": (with_image(mediatype="x"), "items.0.images.0.mediatype", "mean `media_type`?"),
    "unknown field of a source": (
        with_item(source_images=[PNG | {"heigth": 4}]),
        "items.0.source_images.0.heigth",
        "did you mean `height`?",
    ),
    "a field like none": (with_item(zzz=1), "items.0.zzz", "no such field; there are: id, group_id, prompt, images"),
    "a field of a megabyte": (with_item(**{"x" * (1 << 20): 1}), "items.0." + "x" * 64, "no such field; there are"),
    "id missing": ({"items": [{"prompt": "p", "completion": "c"}]}, "items.0.id", "Field required"),
    "id empty": (with_item(id=""), "items.0.id", "at least 1 character"),
    "id long": (with_item(id="x" * 257), "items.0.id", "at most 256 characters; got 257"),
    "id number": (with_item(id=3), "items.0.id", "valid string"),
    "id twice": ({"items": [*with_item()["items"], *with_item()["items"]]}, None, "'a' appears twice"),
    "group_id empty": (with_item(group_id=""), "items.0.group_id", "at least 1 character"),
    "prompt missing": ({"items": [{"id": "a", "completion": "c"}]}, "items.0.prompt", "Field required"),
    "prompt null": (with_item(prompt=None), "items.0.prompt", "valid string"),
    "prompt long": (with_item(prompt="x" * 65_537), "items.0.prompt", "at most 65536 characters; got 65537"),
    "nothing to score": ({"items": [{"id": "a", "prompt": "p"}]}, "items.0", "at least one image"),
    "images not a list": (with_item(images="x"), "items.0.images", "valid list"),
    "image not an object": (with_item(images=["x"]), "items.0.images.0", "valid dictionary"),
    "media_type missing": (with_item(images=[{"data": "AAAA"}]), "items.0.images.0.media_type", "Field required"),
    "media_type unknown": (
        with_image(media_type="image/gif"),
        "items.0.images.0.media_type",
        "or 'image/x-rgb8'; got 'image/gif'",
    ),
    "data not text": (with_image(data=5), "items.0.images.0.data", "valid string"),
    "data and part": (with_image(part="x"), "items.0.images.0", "exactly one of"),
    "neither data nor part": (with_image(data=None), "items.0.images.0", "exactly one of"),
    "part long": (with_image(data=None, part="x" * 257), "items.0.images.0.part", "at most 256"),
    "width text": (with_image(width="4"), "items.0.images.0.width", "valid integer, a JSON number; this is text"),
    "height true": (with_image(height=True), "items.0.images.0.height", "valid integer, a JSON number; this is true"),
    "width zero": (with_image(width=0), "items.0.images.0.width", "greater than or equal to 1"),
    "height huge": (with_image(height=65_537), "items.0.images.0.height", "less than or equal to 65536; got 65537"),
    "rgb8 without size": (with_image(media_type="image/x-rgb8"), "items.0.images.0", "give `width` and `height`"),
    "completion not text": (with_item(completion=[]), "items.0.completion", "valid string"),
    "completion long": (with_item(completion="x" * (1 << 20) + "x"), "items.0.completion", "at most 1048576"),
    "source_images bad": (with_item(source_images=[{}]), "items.0.source_images.0.media_type", "Field required"),
    "targets not a list": (with_item(targets="STOP"), "items.0.targets", "valid list"),
    "target not text": (with_item(targets=["a", 1]), "items.0.targets.1", "valid string"),
    "metadata not an object": (with_item(metadata=[]), "items.0.metadata", "valid dictionary"),
    "reward not text": (with_item() | {"reward": 1}, "reward", "valid string"),
    "reward unknown": (with_item() | {"reward": "hps"}, "reward", "no reward 'hps' here; test serves: prompt_length"),
    "deadline zero": (with_item() | {"deadline_ms": 0}, "deadline_ms", "greater than or equal to 1; got 0"),
    "deadline text": (with_item() | {"deadline_ms": "soon"}, "deadline_ms", "valid integer"),
    "deadline digits in quotes": (with_item() | {"deadline_ms": "5"}, "deadline_ms", "a JSON number; this is text"),
    "deadline true": (with_item() | {"deadline_ms": True}, "deadline_ms", "a JSON number; this is true or false"),
    "deadline false": (with_item() | {"deadline_ms": False}, "deadline_ms", "a JSON number; this is true or false"),
    "deadline with a fraction": (with_item() | {"deadline_ms": 5.5}, "deadline_ms", "valid integer"),
    "deadline long": (with_item() | {"deadline_ms": 3_600_001}, "deadline_ms", "less than or equal to 3600000"),
    "request_id empty": (with_item() | {"request_id": ""}, "request_id", "at least 1 character"),
}


@pytest.mark.parametrize("name", CASES)
async def test_broken_field_is_named(running, name):
    body, field, message = CASES[name]
    async with running(PromptLengthScorer()) as client:
        answer = await client.post("/v1/score", json=body)
    assert answer.status_code == (404 if name == "reward unknown" else 422), answer.text
    error = answer.json()["error"]
    assert error.get("field") == field
    assert message in error["message"]


BROKEN_JSON = {
    "empty": b"",
    "cut": b'{"items": [',
    "nan": b'{"items": [{"id": "a", "prompt": "p", "completion": "c", "metadata": {"x": NaN}}]}',
    "infinity": b'{"items": [{"id": "a", "prompt": "p", "completion": "c", "metadata": {"x": -Infinity}}]}',
    "surrogate": rb'{"items": [{"id": "a", "prompt": "\ud800", "completion": "c"}]}',
    "not utf-8": b'{"items": [{"id": "a", "prompt": "\xff\xfe", "completion": "c"}]}',
    "deep": b'{"items": ' + b"[" * 100_000,
    "long number": b'{"deadline_ms": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("name", BROKEN_JSON)
async def test_broken_json_is_400(running, name):
    async with running(PromptLengthScorer()) as client:
        answer = await client.post("/v1/score", content=BROKEN_JSON[name], headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed"), answer.text
    assert "the body is not JSON" in answer.json()["error"]["message"]


async def test_a_whole_number_with_a_point_is_a_whole_number(running):
    async with running(PromptLengthScorer()) as client:
        assert (await client.post("/v1/score", json=with_item() | {"deadline_ms": 5000.0})).status_code == 200


@pytest.mark.parametrize("value", ["1e999", "[1, [-1e999]]", '{"deep": {"er": 1e400}}'])
async def test_number_too_large_for_a_float_is_refused(running, value):
    body = '{"items": [{"id": "a", "prompt": "p", "completion": "c", "metadata": {"x": VALUE}}]}'
    body = body.replace("VALUE", value)
    async with running(PromptLengthScorer()) as client:
        answer = await client.post("/v1/score", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "items.0.metadata"
    assert "finite" in answer.json()["error"]["message"]


async def test_nested_metadata_within_reason_is_served(running):
    nested = json.loads("[" * 60 + "]" * 60)
    async with running(PromptLengthScorer()) as client:
        fine = await client.post("/v1/score", json=with_item(metadata={"x": nested, "n": 10**400}))
    assert fine.status_code == 200, fine.text


async def test_deeply_nested_metadata_is_refused_not_a_crash(running):
    nested = json.loads("[" * 190 + "]" * 190)
    async with running(PromptLengthScorer()) as client:
        answer = await client.post("/v1/score", json=with_item(metadata={"x": nested}))
    assert answer.status_code in (200, 400, 422), answer.text


async def test_a_field_that_a_form_left_empty_is_no_image(running):
    """Browsers and Swagger UI send an empty part for it."""
    image = {"part": "image0", "media_type": "image/png"}
    request = {"items": [{"id": "a", "prompt": "four", "images": [image]}]}
    files = {"image0": ("a.png", encode(Image.new("RGB", (2, 2)), "image/png"), "image/png"), "image1": (None, b"")}
    async with running(PromptLengthScorer()) as client:
        answer = await client.post("/v1/score", files={"request": (None, json.dumps(request)), **files})
        assert answer.status_code == 200 and answer.json()["results"][0]["score"] == 4.0, answer.text
        missing = {**request, "items": [{**request["items"][0], "images": [{**image, "part": "image1"}]}]}
        answer = await client.post("/v1/score", files={"request": (None, json.dumps(missing)), "image1": (None, b"")})
        assert answer.json()["results"][0]["error"]["code"] == "bad_input", "one that is named must be an image"


async def test_multipart_that_is_wrong_is_named(running):
    good = json.dumps(with_item())

    async def send(client, body, boundary="b"):
        headers = {"content-type": "multipart/form-data" + (f"; boundary={boundary}" if boundary else "")}
        answer = await client.post("/v1/score", content=body, headers=headers)
        return answer.status_code, answer.json()["error"]

    def part(name, data):
        return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{data}\r\n'

    async with running(PromptLengthScorer(), max_items=2, max_images_per_item=1) as client:
        assert (await send(client, part("request", good) + "--b--\r\n", boundary=None))[0] == 400
        status, error = await send(client, part("other", good) + "--b--\r\n")
        assert (status, error["field"]) == (400, "request")
        status, error = await send(client, part("request", good))
        assert status == 400 and "closing boundary" in error["message"]
        status, error = await send(client, "garbage")
        assert status == 400 and "not well-formed" in error["message"]
        status, error = await send(client, part("request", good) * 2 + "--b--\r\n")
        assert status == 400 and "two multipart parts" in error["message"]
        status, error = await send(client, "--b\r\nX: y\r\n\r\ndata\r\n--b--\r\n")
        assert status == 400 and "no name" in error["message"]
        status, error = await send(client, part("request", good) + part("img", "x") + "--b--\r\n")
        assert (status, error["field"]) == (422, "img")
        many = "".join(part(f"p{n}", "x") for n in range(5))
        assert (await send(client, part("request", good) + many + "--b--\r\n"))[0] == 413
