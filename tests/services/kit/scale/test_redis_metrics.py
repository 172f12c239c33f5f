"""What is counted where every job passes two dispatchers: the front's and its worker's."""

from __future__ import annotations

import pytest

from services.kit.testing.fakes import PromptLengthScorer
from tests.support.redis_services import ask, counts, text_items

pytestmark = pytest.mark.anyio


async def test_each_item_is_counted_once_by_a_process_that_is_front_and_worker(running, redis_server):
    async with running(PromptLengthScorer(), redis=redis_server.url) as client:
        for _ in range(2):
            await ask(client, text_items("a", "bb", "ccc"))
        counted = counts(client)
    assert counted["reward_cache_misses_total"] == counted["reward_item_queue_seconds_count"] == 3
    assert counted["reward_cache_hits_total"] == 3
