"""Rewards that compare: what of a request makes a group, over HTTP."""

from __future__ import annotations

import pytest

from services.kit.scorer import Score
from services.kit.testing.fakes import FakeScorer
from wire.schema import ScorerInfo

pytestmark = pytest.mark.anyio


class RankScorer(FakeScorer):
    """The share of the other items of its group whose prompt is shorter. Keeps the groups it was given."""

    name = "rank"

    def __init__(self):
        super().__init__()
        self.groups = []

    @property
    def rewards(self):
        return {"rank": ScorerInfo(name="rank", revision="1", range=(0, 1), grouped=True)}

    def score(self, reward, items):
        self.groups.append([item.id for item in items])
        lengths = [len(item.prompt) for item in items]
        return [Score(sum(other < own for other in lengths) / max(1, len(lengths) - 1)) for own in lengths]

    def score_item(self, item):
        raise AssertionError("a group is never taken apart")


def item(item_id, prompt, group_id="g", **more):
    return {"id": item_id, "prompt": prompt, "completion": "", "group_id": group_id, **more}


async def ask(client, *items):
    answer = await client.post("/v1/score", json={"items": list(items)})
    assert answer.status_code == 200, answer.text
    return {result["id"]: result for result in answer.json()["results"]}


async def test_groups_are_whole_whatever_their_order_in_the_request(running):
    scorer = RankScorer()
    async with running(scorer) as client:
        scorer.groups.clear()
        found = await ask(
            client,
            item("a1", "x"),
            item("b1", "xxxx", "h"),
            item("a2", "xxx"),
            item("b2", "x", "h"),
            item("a3", "xx"),
        )
    assert sorted(scorer.groups) == [["a1", "a2", "a3"], ["b1", "b2"]]
    assert {key: each["score"] for key, each in found.items()} == {"a1": 0, "a2": 1, "a3": 0.5, "b1": 1, "b2": 0}


async def test_an_item_without_a_group_is_told_so_and_a_bad_image_leaves_its_group(running):
    scorer = RankScorer()
    async with running(scorer) as client:
        scorer.groups.clear()
        broken = {"media_type": "image/png", "data": "bm90IGEgcG5n"}
        found = await ask(
            client,
            item("lonely", "x", None),
            item("a", "x"),
            item("bad", "xx", images=[broken]),
            item("b", "xxx"),
        )
    assert found["lonely"]["error"]["code"] == "bad_input" and "group_id" in found["lonely"]["error"]["message"]
    assert found["bad"]["error"]["code"] == "bad_input" and scorer.groups == [["a", "b"]]
    assert (found["a"]["score"], found["b"]["score"]) == (0, 1)


async def test_the_same_group_again_comes_from_the_cache_and_another_order_does_not(running):
    scorer = RankScorer()
    async with running(scorer) as client:
        scorer.groups.clear()
        one, two = item("a", "x"), item("b", "xx")
        assert not (await ask(client, one, two))["a"]["cached"]
        assert (await ask(client, one, two))["a"]["cached"]
        assert not (await ask(client, two, one))["a"]["cached"]
    assert len(scorer.groups) == 2


async def test_info_says_that_the_reward_compares(running):
    async with running(RankScorer()) as client:
        assert (await client.get("/v1/info")).json()["rewards"][0]["grouped"] is True
