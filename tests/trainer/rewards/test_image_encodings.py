"""`image_encoding: auto`: the cheapest exact encoding is measured once, kept, and named; scores cannot change by it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.reward_servers import Reply, good, make_samples
from trainer.config import RewardsConfig
from trainer.programs import services
from trainer.rewards import RewardClient, encodings
from trainer.rewards.encodings import EXACT, Encodings, measure
from trainer.rewards.payload import MEDIA_TYPES, encode_pixels
from trainer.rewards.transport import AttemptError, ServiceCaller
from wire.images import decode

PNG, RAW, WEBP = "image/png", "image/x-rgb8", "image/webp"
COSTS = {name: {"encode": ms, "send": 1.0, "decode": 0.5} for name, ms in (("rgb8", 3.0), ("png", 1.0), ("webp", 2.0))}


def kind_of(request: dict[str, Any]) -> str:
    return str(request["items"][0]["images"][0]["media_type"])


def behave(refuses: dict[str, int]) -> Any:
    """A service that has no reward of other names, and refuses images of some kinds with another status."""

    def answer(request: dict[str, Any]) -> Reply:
        if request["reward"] is None:
            return good(request)
        status = refuses.get(kind_of(request), 404)
        return Reply({"error": {"code": "not_found", "message": f"refused with {status}"}}, status)

    return answer


def run(server: Any, chosen: Encodings) -> tuple[list[str], list[Any]]:
    """The media types of the requests for scores, and what the client said."""
    events: list[Any] = []
    service = {"urls": [server.url], "image_encoding": "auto"}
    tree = {"services": {"r": service}, "columns": {"r": {"service": "r"}}, "canary": False}
    config = RewardsConfig.model_validate(tree)
    with RewardClient(config, urls={"r": [server.url]}, on_event=events.append, encodings=chosen) as client:
        batch = client.batch()
        batch.submit(make_samples(6, {"r": 1.0}, size=8))
        batch.submit(make_samples(2, {"r": 1.0}, first=6, size=8))
        assert batch.collect().valid_BR.all()
    return [kind_of(each) for each in server.requests if each["reward"] is None], events


def test_the_cheapest_is_chosen_once_kept_and_said(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, Any]] = []
    asked: list[int] = []

    async def measured(_caller: ServiceCaller, samples: Any) -> dict[str, dict[str, float]]:
        asked.append(len(samples))
        return COSTS

    monkeypatch.setattr(encodings, "measure", measured)
    kinds, events = run(scripted(), Encodings(keep=lambda chosen: kept.append(dict(chosen))))
    assert kinds == [PNG, PNG] and asked == [4]
    [said] = [event.message for event in events if event.kind == "encoding"]
    assert "images travel as png" in said and "one of 9x8" in said and "rgb8 4.50 (3.00 + 1.00 + 0.50)" in said
    assert kept == [{"r": {"encoding": "png", "images": 4, "size": [9, 8], "ms": COSTS}}]


def test_a_choice_that_was_kept_is_not_measured_again(scripted: Any) -> None:
    server = scripted(behave({}))
    kinds, events = run(server, Encodings({"r": {"encoding": "webp"}}))
    assert kinds == [WEBP, WEBP] and len(server.requests) == 2
    assert not any(event.kind == "encoding" for event in events)


def test_where_nothing_can_be_measured_images_travel_raw_and_it_is_said(scripted: Any) -> None:
    kept: list[Any] = []
    kinds, events = run(scripted(behave(dict.fromkeys((RAW, PNG, WEBP), 413))), Encodings(keep=kept.append))
    assert kinds == [RAW, RAW] and kept == []
    assert any(event.kind == "hint" and "could not be measured" in event.message for event in events)


def measured_at(server: Any) -> dict[str, dict[str, float]]:
    async def measuring() -> dict[str, dict[str, float]]:
        config = RewardsConfig.model_validate({"services": {"r": {"urls": [server.url], "image_encoding": "auto"}}})
        caller = ServiceCaller("r", config.services["r"], [server.url], lambda _event: None)
        try:
            return await measure(caller, make_samples(3, {"r": 1.0}, size=8))
        finally:
            await caller.aclose()

    return asyncio.run(measuring())


def test_all_exact_encodings_are_measured_in_turn_and_nothing_is_scored(scripted: Any) -> None:
    server = scripted(behave({}))
    costs = measured_at(server)
    assert list(costs) == list(EXACT) and all(list(each) == ["encode", "send", "decode"] for each in costs.values())
    assert all(ms >= 0 for each in costs.values() for ms in each.values())
    assert [kind_of(each) for each in server.requests] == 3 * [RAW, PNG, WEBP], "JPEG is not exact"
    assert all(each["reward"] == encodings._NO_REWARD for each in server.requests)


def test_what_the_service_refuses_is_left_out(scripted: Any) -> None:
    assert list(measured_at(scripted(behave({RAW: 413})))) == ["png", "webp"]
    with pytest.raises(AttemptError, match="refused with 413"):
        measured_at(scripted(behave(dict.fromkeys((RAW, PNG, WEBP), 413))))


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_run_that_goes_on_has_its_choice_and_a_new_one_none(tmp_path: Any, goes_on: bool) -> None:
    path = tmp_path / services.ENCODINGS
    path.write_text(json.dumps({"r": {"encoding": "png"}}))
    of_run = services._encodings(path, SimpleNamespace(is_main=True), goes_on=goes_on)
    assert of_run._chosen == ({"r": {"encoding": "png"}} if goes_on else {})
    assert of_run._keep is not None
    of_run._keep({"r": {"encoding": "rgb8", "ms": {}}})
    assert json.loads(path.read_text())["r"]["encoding"] == "rgb8"
    assert services._encodings(path, SimpleNamespace(is_main=False), goes_on=True)._keep is None


def test_exact_encodings_give_back_every_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    for name in EXACT:
        back = decode(encode_pixels(pixels, name), MEDIA_TYPES[name], width=5, height=7)
        assert np.array_equal(np.asarray(back.convert("RGB")), pixels), name
