"""Worker processes: spreading, death, restart, recycling, orphans. Real processes."""

from __future__ import annotations

import os
import signal
import time

import pytest
from PIL import Image

from services.common.fakes import PromptLengthScorer
from services.common.scorer import Item, Score
from services.common.workers import ProcessPool


@pytest.fixture
def pool():
    pool = ProcessPool(PromptLengthScorer, workers=2)
    pool.load()
    yield pool
    pool.close()


def test_pool_scores_like_the_scorer_it_runs(pool):
    image = Image.new("RGB", (48, 24), "red")
    items = [Item(id=str(n), prompt="x" * n, images=(image,)) for n in range(5)]
    assert [r.value for r in pool.score("prompt_length", items)] == [0, 1, 2, 3, 4]
    assert len(pool.pids()) == 2


def test_killed_worker_is_replaced(pool):
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert isinstance(pool.score("prompt_length", [Item(id="a", prompt="abc")])[0], Score)
    assert pool.restarts >= 1
