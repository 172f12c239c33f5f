"""What a body becomes when it is read counts in the memory budget, before it is built and until the request ends."""

from __future__ import annotations

import json
import pickle
import tracemalloc

import pytest

from services.kit.errors import ApiError
from services.kit.guard.memory import MemoryBudget
from services.kit.http.intake import parse_request
from services.kit.legacy.compute import parse_compute
from services.kit.legacy.pickled import PickledRequest
from services.kit.metrics import Metrics
from services.kit.settings import ServiceSettings
from services.kit.testing.fakes import PromptLengthScorer

MIB = 1 << 20
SETTINGS = ServiceSettings()


def body(metadata, count=1, **more):
    items = [{"id": str(n), "prompt": "p", "completion": "c", "metadata": metadata} for n in range(count)]
    return json.dumps({"items": items}, **more).encode()


SHAPES = {
    "numbers": {"a": list(range(50_000))},
    "empty lists": {"a": [[]] * 30_000},
    "lists in lists": {"a": [[[]]] * 30_000},
    "objects": {"a": [{"k": 1}] * 30_000},
    "objects with long names": {"a": [{f"key{n:040d}": 1} for n in range(20_000)]},
    "names": {f"key{n:030d}": n for n in range(50_000)},
    "texts": {"a": [f"{n:030d}" for n in range(50_000)]},
    "wide texts": {"a": [f"{n:030d}\U0001f600" for n in range(30_000)]},
    "a long wide text": {"a": "x" * 1_000_000 + "\U0001f600"},
    "a long text": {"a": "x" * 1_000_000},
}


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_charged_covers_what_is_taken(name, escaped):
    data = body(SHAPES[name], ensure_ascii=escaped)
    budget = MemoryBudget(1 << 40, Metrics(), lambda: 1)
    hold = budget.hold()
    tracemalloc.start()
    try:
        parsed = parse_request(data, "application/json", SETTINGS, hold)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert parsed.request.items[0].metadata == SHAPES[name]
    assert peak <= budget.used <= 16 * peak + MIB
    hold.release()
    assert budget.used == 0


@pytest.mark.parametrize("name", ["objects", "empty lists", "wide texts"])
def test_what_would_not_fit_is_refused_before_it_is_built(name):
    data = body(SHAPES[name])
    hold = MemoryBudget(3 * MIB, Metrics(), lambda: 1).hold()
    tracemalloc.start()
    try:
        with pytest.raises(ApiError, match="need more than 3145728 bytes") as refused:
            parse_request(data, "application/json", SETTINGS, hold)
        assert refused.value.status == 413
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_json_part_and_the_other_protocols_count_too():
    part = (
        b'--xx\r\nContent-Disposition: form-data; name="request"\r\n\r\n' + body(SHAPES["objects"]) + b"\r\n--xx--\r\n"
    )
    batch = {"images": [b"x"], "prompts": ["p"], "metadata": {"a": [{"k": n} for n in range(30_000)]}}
    wide = {"images": [b"x"], "prompts": ["x" * 1_000_000 + "\U0001f600"]}
    flow = json.dumps({"prompt": ["p"], "image": [""], "kwargs": {"a": [{"k": 1}] * 30_000}}).encode()
    for call in (
        lambda hold: parse_request(part, "multipart/form-data; boundary=xx", SETTINGS, hold),
        lambda hold: PickledRequest("r").parse(pickle.dumps(batch, 4), "", SETTINGS, hold),
        lambda hold: PickledRequest("r").parse(pickle.dumps(wide, 4), "", SETTINGS, hold),
        lambda hold: parse_compute("r", flow, "", SETTINGS, hold),
    ):
        with pytest.raises(ApiError, match="need more than 3145728 bytes"):
            call(MemoryBudget(3 * MIB, Metrics(), lambda: 1).hold())


@pytest.mark.anyio
async def test_over_http_it_is_refused_and_given_back(running):
    limits = {"max_memory_bytes": 8 * MIB, "max_body_bytes": 4 * MIB}
    async with running(PromptLengthScorer(), **limits) as client:
        headers = {"Content-Type": "application/json"}
        refused = await client.post("/v1/score", content=body(SHAPES["objects"]), headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")
        taken = await client.post("/v1/score", content=body({"a": "x" * 1_000_000}, 2), headers=headers)
        assert taken.status_code == 200, taken.text
        assert client.app.state.service._memory.used == 0
