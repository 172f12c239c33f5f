"""Large groups: refused above the limit, compared as slots free up, and over at their deadline however many they are."""

from __future__ import annotations

import asyncio
import itertools
import time

import httpx
import pytest
from PIL import Image

from services.kit.app import create_app
from services.kit.judge.slots import Slots
from services.kit.scorer import Failure, Item
from services.kit.testing.scripted_judge import Reply
from services.unifiedreward.scorer import UnifiedRewardScorer
from services.unifiedreward.settings import UnifiedRewardSettings
from tests.support.gateways import score_request
from tests.support.judges import judging
from wire.schema import ErrorCode

pytestmark = pytest.mark.anyio

FIRST_WINS = "<answer>Image 1 is better</answer>"


async def test_who_came_first_gets_each_slot_that_is_free():
    slots, order = Slots(1), []
    early, late = slots.ticket(), slots.ticket()
    await slots.acquire(early)

    async def take(ticket, name):
        await slots.acquire(ticket)
        order.append(name)
        slots.release()

    tasks = [asyncio.ensure_future(take(late, "late"))]
    tasks += [asyncio.ensure_future(take(early, "early")) for _ in range(3)]
    await asyncio.sleep(0)
    slots.release()
    await asyncio.gather(*tasks)
    assert order == ["early"] * 3 + ["late"]


async def test_a_slot_is_not_lost_with_who_leaves_as_it_is_given():
    slots = Slots(1)
    await slots.acquire(slots.ticket())
    leaving, staying = (asyncio.ensure_future(slots.acquire(slots.ticket())) for _ in range(2))
    await asyncio.sleep(0)
    slots.release()
    leaving.cancel()
    await asyncio.wait_for(staying, 30)
    assert leaving.cancelled() and slots._waiting == []
    slots.release()
    again = asyncio.ensure_future(slots.acquire(slots.ticket()))
    await asyncio.sleep(0)
    assert again.done(), "nobody has the slot, so nobody is waited for"


async def test_of_thousands_who_wait_and_give_up_each_costs_the_same():
    """Steps are counted, not seconds: the futures that are looked at while all leave."""
    slots = Slots(1)
    await slots.acquire(slots.ticket())
    waiting = [asyncio.ensure_future(slots.acquire(slots.ticket())) for _ in range(5000)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(slots._waiting) == 5000, "nobody searched the line for his own place"
    slots.release()
    assert slots._waiting == []
    await asyncio.wait_for(slots.acquire(slots.ticket()), 5)


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost")


def gateway(**more):
    settings = UnifiedRewardSettings(model="judge", check_model=False, **more)
    scorer = UnifiedRewardScorer(settings)
    return create_app(scorer, "x", settings), scorer


def group_of(count, **top):
    images = [Image.new("RGB", (4, 4), (n % 256, n // 256, 9)) for n in range(count)]
    return score_request(images, "a cat", group=True, **top)


async def test_a_group_above_the_limit_is_refused_with_both_numbers_and_the_limit_is_told():
    with judging(FIRST_WINS) as judge:
        app, _ = gateway(judge_url=judge.url)
        async with app.router.lifespan_context(app), client_of(app) as client:
            while not app.state.service.ready:
                await asyncio.sleep(0.01)
            assert (await client.get("/v1/info")).json()["limits"]["max_group_items"] == 128
            answer = await client.post("/v1/score", json=group_of(129))
            assert judge.calls == 0
            several = group_of(130)
            for number, item in enumerate(several["items"]):
                item["group_id"] = f"g{number % 65}"
            fits = await client.post("/v1/score", json=several)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (413, "too_large", "items")
    assert (
        "group 'g' has 129 items and the limit is 128" in error["message"] and "--max-group-items" in error["message"]
    )
    assert fits.status_code == 200 and judge.calls == 65


def items_of(count):
    return [Item(id=str(n), prompt="a cat", images=(Image.new("RGB", (4, 4), (n, 0, 0)),)) for n in range(count)]


async def test_no_comparison_is_made_before_a_slot_is_free_for_it():
    """128 images are 8128 comparisons; with a judge that hangs there are 4 calls and no task for the others."""
    with judging(lambda _question: Reply(FIRST_WINS, delay_s=60)) as judge:
        _, scorer = gateway(judge_url=judge.url, concurrency=4)
        before = len(asyncio.all_tasks())
        scoring = asyncio.ensure_future(scorer.score("think_pairwise", items_of(128), time.monotonic() + 3))
        while judge.calls < 4:
            await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) - before <= 1 + 4
        results = await scoring
        assert judge.calls == 4
        await scorer.close()
    assert {(type(each), each.code) for each in results} == {(Failure, ErrorCode.TIMEOUT)}
    assert "0 of 127 comparisons were decided" in results[0].message
    [calls] = [metric for metric in scorer.collectors[0].collect()]
    assert [sample.value for sample in calls.samples if sample.name.endswith("_total")] == [8128.0]


async def test_a_group_that_is_given_up_gives_its_slots_back():
    delays = itertools.chain([60.0] * 4, itertools.repeat(0.0))
    with judging(lambda _question: Reply(FIRST_WINS, delay_s=next(delays))) as judge:
        _, scorer = gateway(judge_url=judge.url, concurrency=4)
        scoring = asyncio.ensure_future(scorer.score("think_pairwise", items_of(20), time.monotonic() + 60))
        while judge.calls < 4:
            await asyncio.sleep(0.01)
        scoring.cancel()
        await asyncio.gather(scoring, return_exceptions=True)
        results = await scorer.score("think_pairwise", items_of(5), time.monotonic() + 20)
        await scorer.close()
    assert [each.components["n_valid"] for each in results] == [4.0] * 5
