"""POST /v1/score against the real app in process: isolation, limits, deadlines, cache, errors."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import threading
import zlib

import pytest
from PIL import Image

from services.kit.dispatch import decoding
from services.kit.scorer import Failure, Score
from services.kit.testing.fakes import (
    ConstantScorer,
    FailEveryNthScorer,
    NanScorer,
    PromptLengthScorer,
    RaisingScorer,
    SlowScorer,
    WrongCountScorer,
)
from tests.support.gated import Gated, until
from wire.images import encode, to_ref
from wire.schema import ErrorCode, ScoreResponse

pytestmark = pytest.mark.anyio


def ref(size=(8, 8), color="red", media_type="image/png"):
    return to_ref(Image.new("RGB", size, color), media_type).model_dump(exclude_none=True)


def item(number, prompt=None, **more):
    return {"id": f"i{number}", "prompt": prompt or "x" * number, "completion": "c"} | more


async def post(client, items, **more):
    return await client.post("/v1/score", json={"items": items, **more})


def results_of(response):
    assert response.status_code == 200, response.text
    return {r.id: r for r in ScoreResponse.model_validate_json(response.content).results}


async def test_each_item_gets_its_own_score(running):
    async with running(PromptLengthScorer()) as client:
        results = results_of(await post(client, [item(n) for n in range(1, 30)]))
    assert {key: r.score for key, r in results.items()} == {f"i{n}": float(n) for n in range(1, 30)}


async def test_mixed_callers_share_batches_and_each_gets_its_own(running):
    scorer = PromptLengthScorer(max_batch=16)
    async with running(scorer, max_wait_ms=20) as client:
        answers = await asyncio.gather(*(post(client, [item(n), item(n + 50)]) for n in range(1, 31)))
    for n, answer in enumerate(answers, 1):
        assert {r.score for r in results_of(answer).values()} == {n, n + 50}
    assert max(scorer.batches) == 16
    assert len(scorer.threads) == 1, "one thread owns the scorer"


@pytest.mark.parametrize("media_type", ["image/png", "image/webp", "image/jpeg", "image/x-rgb8"])
async def test_json_and_multipart_carry_the_same_image(running, media_type):
    image = Image.new("RGB", (6, 4), (10, 200, 30))

    class PixelScorer(PromptLengthScorer):
        def score_item(self, item):
            if not item.images:
                return Score(0.0)
            assert item.images[0].size == (6, 4)
            return Score(float(item.images[0].convert("RGB").getpixel((5, 3))[1]))

    async with running(PixelScorer(), cache_entries=0) as client:
        by_json = await post(client, [{"id": "a", "prompt": "p", "images": [to_ref(image, media_type).model_dump()]}])
        meta = {"part": "img0", "media_type": media_type, "width": 6, "height": 4}
        request = {"items": [{"id": "a", "prompt": "p", "images": [meta]}]}
        by_parts = await client.post(
            "/v1/score",
            files={
                "request": (None, json.dumps(request), "application/json"),
                "img0": ("0", encode(image, media_type), media_type),
            },
        )
    green = results_of(by_json)["a"].score
    assert green == results_of(by_parts)["a"].score
    assert abs(green - 200) < 4


def bomb(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def b64(data):
    return base64.b64encode(data).decode()


GOOD_PNG = encode(Image.new("RGB", (64, 64), "blue"), "image/png")
BAD_IMAGES = {
    "truncated": ({"data": b64(GOOD_PNG[:-40]), "media_type": "image/png"}, "not a readable image/png"),
    "bomb": ({"data": b64(bomb(60_000, 60_000)), "media_type": "image/png"}, "60000"),
    "above_limit": (
        {"data": b64(bomb(5000, 5000)), "media_type": "image/png"},
        "5000x5000 = 25000000 pixels; the limit is",
    ),
    "not_base64": ({"data": "@@@@", "media_type": "image/png"}, "not base64"),
    "empty": ({"data": "", "media_type": "image/png"}, "not a readable image/png"),
    "other_type": ({"data": b64(b"GIF89a" + bytes(20)), "media_type": "image/png"}, "it begins as a GIF does"),
    "rgb8_short": (
        {"data": b64(b"abc"), "media_type": "image/x-rgb8", "width": 2, "height": 2},
        "needs 12 bytes; got 3",
    ),
    "rgb8_bomb": ({"data": "", "media_type": "image/x-rgb8", "width": 65536, "height": 65536}, "pixels; the limit is"),
    "no_such_part": ({"part": "nowhere", "media_type": "image/png"}, "no multipart part named 'nowhere'"),
    "garbage": ({"data": b64(b"\0" * 100), "media_type": "image/webp"}, "not a readable image/webp"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
async def test_bad_image_fails_alone(running, name):
    image, message = BAD_IMAGES[name]
    items = [item(1, images=[ref()]), item(2, images=[ref(), image]), item(3, source_images=[image]), item(4)]
    async with running(PromptLengthScorer()) as client:
        results = results_of(await post(client, items))
    assert (results["i1"].score, results["i4"].score) == (1, 4)
    for key, field in (("i2", "images.1: "), ("i3", "source_images.0: ")):
        assert results[key].error.code is ErrorCode.BAD_INPUT
        assert results[key].error.message.startswith(field)
        assert message in results[key].error.message


async def test_raising_item_fails_alone(running):
    async with running(RaisingScorer()) as client:
        results = results_of(await post(client, [item(1), item(2, "raise"), item(3)]))
        again = results_of(await post(client, [item(4)]))
    assert (results["i1"].score, results["i3"].score, again["i4"].score) == (1, 3, 4)
    assert results["i2"].error.code is ErrorCode.INTERNAL
    assert "asked to raise" in results["i2"].error.message


async def test_nan_is_an_error_not_a_number(running):
    async with running(NanScorer()) as client:
        results = results_of(await post(client, [item(1), item(2, "nan")]))
    assert results["i1"].score == 1
    assert (results["i2"].score, results["i2"].error.code) == (None, ErrorCode.NON_FINITE)


async def test_wrong_result_count_fails_the_batch_and_not_the_next(running):
    async with running(WrongCountScorer()) as client:
        results = results_of(await post(client, [item(1), item(2, "short")]))
        after = results_of(await post(client, [item(3)]))
    assert {r.error.code for r in results.values()} == {ErrorCode.INTERNAL}
    assert "1 results for 2 items" in results["i1"].error.message
    assert after["i3"].score == 3


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (Score(float("inf")), ErrorCode.NON_FINITE),
        (Score(1.0, {"part": float("nan")}), ErrorCode.NON_FINITE),
        (Score("many"), ErrorCode.INTERNAL),
        (Score(1.0, {}, {"box": float("nan")}), ErrorCode.INTERNAL),
        (Score(1.0, {}, {"box": object()}), ErrorCode.INTERNAL),
        (Score(1.0, {}, {"text": "\ud800"}), ErrorCode.INTERNAL),
        (0.5, ErrorCode.INTERNAL),
        (None, ErrorCode.INTERNAL),
        (Failure("no_such_code", "bad \ud800"), ErrorCode.INTERNAL),
        (Failure(ErrorCode.NOT_APPLICABLE, "no target"), ErrorCode.NOT_APPLICABLE),
    ],
)
async def test_what_is_not_a_score_fails_alone(running, given, code):
    class Odd(PromptLengthScorer):
        def score_item(self, item):
            return given if item.prompt == "odd" else super().score_item(item)

    async with running(Odd()) as client:
        results = results_of(await post(client, [item(1), item(2, "odd")]))
    assert results["i1"].score == 1
    assert (results["i2"].score, results["i2"].error.code) == (None, code)


async def test_details_and_components_travel(running):
    class Detailed(PromptLengthScorer):
        def score_item(self, item):
            return Score(1.0, {"part": 0.25}, {"boxes": ((1, 2), (3, 4)), "text": "日本"})

    async with running(Detailed()) as client:
        result = results_of(await post(client, [item(1)]))["i1"]
    assert result.components == {"part": 0.25}
    assert result.details == {"boxes": [[1, 2], [3, 4]], "text": "日本"}


async def test_repeated_input_comes_from_the_cache_and_failures_do_not(running):
    scorer = FailEveryNthScorer(every=2)
    async with running(scorer) as client:
        first = results_of(await post(client, [item(1), item(2)]))
        second = results_of(await post(client, [item(1) | {"id": "other"}, item(2)]))
        metrics = (await client.get("/metrics")).text
    assert [first["i1"].cached, first["i2"].error.code] == [False, ErrorCode.PARSE_ERROR]
    assert second["other"].cached and second["other"].score == 1
    assert second["i2"].score == 2 and not second["i2"].cached, "a failure is tried again"
    assert 'reward_cache_hits_total{reward="fail_every_nth"} 1.0' in metrics


async def test_deadline_keeps_what_is_done(running):
    class StopsAtTheSecond(Gated):
        def score(self, reward, items):
            return (
                super().score(reward, items)
                if items[0].prompt != "x"
                else PromptLengthScorer.score(self, reward, items)
            )

    scorer = StopsAtTheSecond()
    async with running(scorer) as client:
        results = results_of(await post(client, [item(n) for n in (1, 2, 3)], deadline_ms=3000))
        scorer.gate.set()
    assert results["i1"].score == 1
    assert {results["i2"].error.code, results["i3"].error.code} == {ErrorCode.TIMEOUT}


async def test_nothing_done_by_the_deadline_is_504(running):
    async with running(SlowScorer(0.3)) as client:
        answer = await post(client, [item(1), item(2)], deadline_ms=50)
    assert answer.status_code == 504
    assert answer.json()["error"] == {"code": "timeout", "message": "none of 2 items had a result within 50 ms"}


async def test_server_bounds_requests_without_a_deadline(running):
    async with running(SlowScorer(0.3), request_timeout_s=0.05) as client:
        assert (await post(client, [item(1)])).status_code == 504


async def test_full_queue_is_429_with_retry_after(running):
    scorer = Gated()
    async with running(scorer, queue_size=4, max_items=4) as client:
        busy = asyncio.create_task(post(client, [item(n) for n in range(1, 5)]))
        await until(lambda: client.app.state.service.in_flight == 4)
        refused = await post(client, [item(9)])
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "4 items are in flight and 1 more would exceed the limit of 4" in refused.json()["error"]["message"]
        scorer.gate.set()
        assert (await busy).status_code == 200
        assert (await post(client, [item(9)])).status_code == 200, "room again"


async def test_memory_of_decoded_images_is_bounded(running):
    big = {"data": b64(encode(Image.new("RGB", (1024, 1024)), "image/png")), "media_type": "image/png"}
    limits = {"max_memory_bytes": 1 << 22, "max_body_bytes": 1 << 20}
    scorer = Gated()
    scorer.gate.set()
    async with running(scorer, **limits) as client:
        assert (await post(client, [item(1, images=[big])])).status_code == 200
        scorer.gate.clear()
        alone = await post(client, [item(2, images=[big, big])])
        assert (alone.status_code, alone.json()["error"]["code"]) == (413, "too_large")
        busy = asyncio.create_task(post(client, [item(3, images=[big])]))
        await until(lambda: client.app.state.service._dispatcher._entries)  # what is submitted has been decoded
        together = await post(client, [item(4, images=[big])])
        assert together.status_code == 429
        scorer.gate.set()
        assert (await busy).status_code == 200
        assert "reward_memory_bytes 0.0" in (await client.get("/metrics")).text, "all of it was given back"


async def test_memory_is_given_back_though_some_items_are_still_being_decoded(running):
    """Items of one request are decoded in several threads; the others go on after the one that finds the limit."""
    big = {"data": b64(encode(Image.new("RGB", (512, 512)), "image/png")), "media_type": "image/png"}
    limits = {"max_memory_bytes": 1 << 22, "max_body_bytes": 1 << 20}
    async with running(PromptLengthScorer(), **limits) as client:
        for _ in range(5):
            assert (await post(client, [item(n, images=[big]) for n in range(32)])).status_code == 413
        service = client.app.state.service
        await asyncio.to_thread(service._threads.shutdown, wait=True)  # until no thread decodes any more
        assert service._memory.used == 0


async def test_too_many_items_and_images(running):
    async with running(PromptLengthScorer()) as client:
        many = await post(client, [item(n, "p") for n in range(10_000)])
        images = await post(client, [item(1), item(2, images=[ref()] * 17)])
    assert many.status_code == 413
    assert many.json()["error"] == {
        "code": "too_large",
        "message": "10000 items; the limit is 1024: split the request",
        "field": "items",
    }
    assert images.json()["error"]["field"] == "items.1.images"
    assert "17 images; the limit is 16" in images.json()["error"]["message"]


async def test_body_above_the_limit_is_refused_declared_or_chunked(running):
    sent = 0

    async def endless():
        nonlocal sent
        while sent < 1 << 24:
            sent += 1 << 14
            yield b" " * (1 << 14)

    json_type = {"content-type": "application/json"}
    async with running(PromptLengthScorer(), max_body_bytes=1 << 16) as client:
        declared = await client.post("/v1/score", content=b" " * ((1 << 16) + 1), headers=json_type)
        chunked = await client.post("/v1/score", content=endless(), headers=json_type)
    assert (declared.status_code, chunked.status_code) == (413, 413)
    assert "65537 bytes; the limit is 65536" in declared.json()["error"]["message"]
    assert "65536" in chunked.json()["error"]["message"]


async def test_slow_body_is_408(running):
    async def slow():
        yield b"{"
        await asyncio.sleep(30)
        yield b"}"

    async with running(PromptLengthScorer(), body_timeout_s=0.05) as client:
        answer = await client.post("/v1/score", content=slow(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "body_timeout")


async def test_request_id_goes_in_and_out(running):
    async with running(PromptLengthScorer()) as client:
        from_header = await client.post("/v1/score", json={"items": [item(1)]}, headers={"X-Request-ID": "abc-1"})
        from_body = await post(client, [item(1)], request_id="body-2")
        strange = await client.get("/health", headers={"X-Request-ID": "a b\x7f"})
    assert (from_header.json()["request_id"], from_header.headers["x-request-id"]) == ("abc-1", "abc-1")
    assert (from_body.json()["request_id"], from_body.headers["x-request-id"]) == ("body-2", "body-2")
    assert len(strange.headers["x-request-id"]) == 32, "a name of our own instead"


async def test_metrics_count_constant_groups_codes_and_batches(running):
    groups = [item(n, "p" * (1 + n % 2), group_id=f"g{n % 2}", completion=f"c{n}") for n in range(4)]
    mixed = [item(n, group_id="mixed") for n in (5, 6)]
    async with running(ConstantScorer()) as client:
        await post(client, groups)
    async with running(NanScorer()) as client:
        await post(client, [*groups, *mixed, item(9, "nan")])
        text = (await client.get("/metrics")).text
    assert 'reward_groups_total{reward="nan"} 3.0' in text
    assert 'reward_constant_groups_total{reward="nan"} 2.0' in text
    assert 'reward_items_total{code="non_finite",reward="nan"} 1.0' in text
    assert 'reward_requests_total{path="/v1/score",status="200"} 1.0' in text


async def test_client_that_leaves_takes_its_items_along(running):
    scorer = Gated()
    async with running(scorer) as client:
        leaving = asyncio.create_task(post(client, [item(n) for n in range(1, 9)]))
        await until(lambda: client.app.state.service.in_flight == 8)
        leaving.cancel()
        await until(lambda: client.app.state.service.in_flight == 0)
        scorer.gate.set()
        results_of(await post(client, [item(50)]))
    assert len(scorer.batches) <= 3 + 1, "warm-up, the one that ran, the next request; not the eight"


async def test_animated_and_large_mode_images_do_not_hurt(running):
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green")]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    async with running(PromptLengthScorer()) as client:
        animated = {"data": b64(buffer.getvalue()), "media_type": "image/png"}
        assert results_of(await post(client, [item(1, images=[animated])]))["i1"].components == {"images": 1.0}


async def test_images_are_decoded_off_the_event_loop(running, monkeypatch):
    threads = set()
    real = decoding.load

    def watched(image):
        threads.add(threading.get_ident())
        return real(image)

    monkeypatch.setattr(decoding, "load", watched)
    async with running(PromptLengthScorer()) as client:
        results_of(await post(client, [item(n, images=[ref()]) for n in range(1, 40)]))
    assert threads and threading.get_ident() not in threads
