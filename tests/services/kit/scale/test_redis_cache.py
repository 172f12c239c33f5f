"""The score cache that fronts and workers share: found by content, checked when read, never in the way."""

from __future__ import annotations

import json
import time

import pytest

from services.kit.dispatch.cache import ScoreCache
from services.kit.metrics import Metrics
from services.kit.scale.connection import Connection, RedisRefused
from services.kit.scale.messages import encode_scores
from services.kit.scale.metrics import ScaleMetrics
from services.kit.scale.plane import Plane
from services.kit.scale.shared_cache import SharedCache
from services.kit.scorer import Score
from services.kit.testing.fakes import FailEveryNthScorer, PromptLengthScorer
from tests.support.ports import free_port
from tests.support.redis_services import KEYS, ask, counts, text_items

pytestmark = pytest.mark.anyio
KEY = bytes(range(32))


def looked_up(client, outcome):
    return counts(client)[f'reward_shared_cache_total{{outcome="{outcome}"}}']


async def test_two_fronts_share_what_one_has_asked(running, redis_server):
    scorer = PromptLengthScorer()
    async with (
        running(scorer, redis=redis_server.url, role="worker"),
        running(scorer, redis=redis_server.url, role="front") as one,
        running(scorer, redis=redis_server.url, role="front") as two,
    ):
        first = await ask(one, text_items("a", "bb"))
        batches = list(scorer.batches)
        with redis_server.client() as client:
            client.config_resetstat()
            second = await ask(two, text_items("a", "bb", "ccc"))
            assert client.info("commandstats")["cmdstat_mget"]["calls"] == 2, "one by the front, one by the worker"
        assert sum(scorer.batches) - sum(batches) == 1, "only the third was scored"
        assert looked_up(two, "hit") == 2 and looked_up(two, "miss") == 1
    assert [each["cached"] for each in first] == [False, False]
    assert [each["cached"] for each in second] == [True, True, False]
    for before, after in zip(first, second[:2], strict=True):
        assert all(before[name] == after[name] for name in ("score", "components", "details"))


async def test_values_are_json_and_expire(running, redis_server):
    async with running(PromptLengthScorer(), redis=redis_server.url, cache_ttl_s=100) as both:
        await ask(both, text_items("a"))
    with redis_server.client() as client:
        [key] = client.keys("*:scores:*")
        assert 90_000 < client.pttl(key) <= 100_000
        [score] = json.loads(client.get(key))["scores"]
    assert score == {"value": 1.0, "components": {"images": 0.0}, "details": {"prompt": "a"}, "cacheable": True}


async def test_failures_and_what_could_come_out_better_are_not_saved(running, redis_server):
    class Unsure(PromptLengthScorer):
        def score_item(self, item):
            return Score(1.0, cacheable=False)

    for scorer in (FailEveryNthScorer(1), Unsure()):
        async with running(scorer, redis=redis_server.url) as both:
            await ask(both, text_items("a"))
    with redis_server.client() as client:
        assert not client.keys("*:scores:*")


async def test_without_a_cache_nothing_is_looked_up_or_saved(running, redis_server):
    async with running(PromptLengthScorer(), redis=redis_server.url, cache_entries=0) as both:
        await ask(both, text_items("a"))
        assert looked_up(both, "miss") == 0
    with redis_server.client() as client:
        assert not client.keys("*:scores:*")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x80\x04\x95 a pickle",
        b'{"scores": []}',
        b'{"key": "KEY", "scores": []}',
        b'{"key": "KEY", "scores": [{"value": NaN}]}',
        b'{"key": "KEY", "scores": [{"value": 1}, {"value": 2}]}',
        b'{"key": "KEY", "scores": [{"value": "1"}]}',
        b'{"key": "KEY", "scores": [{"value": 1, "components": {"a": null}}]}',
        encode_scores(KEY, [Score(7.0)]),
    ],
)
async def test_a_damaged_or_foreign_value_is_a_miss(running, redis_server, value):
    scorer = PromptLengthScorer()
    async with running(scorer, redis=redis_server.url) as both:
        await ask(both, text_items("a"))
    with redis_server.client() as client:
        [name] = client.keys("*:scores:*")
        key = name.rpartition(b":")[2]
        client.set(name, value.replace(b"KEY", key))
        async with running(scorer, redis=redis_server.url) as both:
            [result] = await ask(both, text_items("a"))
            assert (result["score"], result["cached"]) == (1.0, False)
            assert looked_up(both, "damaged") >= 1
        assert json.loads(client.get(name))["scores"][0]["value"] == 1.0, "and it is mended"


async def test_a_key_of_another_type_is_a_miss(running, redis_server):
    scorer = PromptLengthScorer()
    async with running(scorer, redis=redis_server.url) as both:
        await ask(both, text_items("a"))
    with redis_server.client() as client:
        [name] = client.keys("*:scores:*")
        client.delete(name)
        client.rpush(name, "a list")
    async with running(scorer, redis=redis_server.url) as both:
        assert (await ask(both, text_items("a")))[0]["score"] == 1.0


async def test_a_cache_that_is_away_costs_a_moment_and_is_counted():
    metrics = ScaleMetrics(Metrics().registry, [])
    connection = Connection(f"redis://127.0.0.1:{free_port()}/0")
    cache = SharedCache(Plane(connection, KEYS, {}, metrics), ScoreCache(8), 60)
    began = time.monotonic()
    await cache.fetch({KEY: 1, KEY[::-1]: 1})
    assert time.monotonic() - began < 5
    assert metrics.shared_cache.labels("away")._value.get() == 2
    cache.check(RedisRefused("OOM"))
    assert metrics.shared_cache.labels("unsaved")._value.get() == 1
    await connection.close()
