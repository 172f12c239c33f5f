"""Worker processes: spreading, death, restart, recycling, one thread each. Real processes."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from PIL import Image

from services.kit.dispatch.patience import Backoff, StartFailed
from services.kit.dispatch.workers import THREAD_VARIABLES, ProcessPool
from services.kit.scorer import Failure, Item, Score
from services.kit.testing.fakes import ConstantScorer, PromptLengthScorer, RaisingScorer
from wire.images import decode, encode
from wire.schema import ErrorCode


class Dangerous(PromptLengthScorer):
    """Does to its process what the prompt says."""

    name = "dangerous"

    def score_item(self, item):
        if item.prompt == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if item.prompt == "hang":
            time.sleep(60)
        if item.prompt == "pid":
            return Score(float(os.getpid()))
        if item.prompt == "threads":
            return Score(float(sum(os.environ.get(name) == "1" for name in THREAD_VARIABLES)))
        if item.prompt == "pixel":
            return Score(float(item.images[0].convert("RGB").getpixel((0, 0))[0]))
        return super().score_item(item)


class DoesNotLoad(PromptLengthScorer):
    def load(self):
        raise RuntimeError("no weights in /models")


class LoadsOnlyOnce(Dangerous):
    """Its processes load as long as the file exists."""

    def __init__(self, path):
        super().__init__()
        self._path = path

    def load(self):
        if not os.path.exists(self._path):
            raise RuntimeError("the weights are gone")


def item(prompt, number=0, images=()):
    return Item(id=str(number), prompt=prompt, completion="", images=images)


@pytest.fixture(scope="module")
def pool():
    pool = ProcessPool(Dangerous, workers=2, batch_timeout_s=1.0)
    pool.load()
    yield pool
    pool.close()


def values(results):
    return [result.value if isinstance(result, Score) else result.code for result in results]


def test_scores_like_the_scorer_it_runs(pool):
    assert values(pool.score("dangerous", [item("x" * n, n) for n in range(5)])) == [0, 1, 2, 3, 4]
    assert (pool.concurrency, pool.max_batch, list(pool.rewards)) == (2, 8, ["dangerous"])
    assert [reward for reward, _ in pool.warmup()] == ["dangerous"]


@pytest.mark.parametrize("media_type", ["image/png", "image/webp", "image/jpeg", "image/x-rgb8"])
def test_decoded_images_reach_the_process(pool, media_type):
    image = decode(encode(Image.new("RGB", (48, 24), (200, 0, 0)), media_type), media_type, width=48, height=24)
    [value] = values(pool.score("dangerous", [item("pixel", images=(image,))]))
    assert abs(value - 200) < 3


def test_paletted_image_reaches_the_process(pool):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 0, 0)).quantize(4).save(buffer, "PNG")
    image = decode(buffer.getvalue(), "image/png")
    assert image.mode == "P"
    assert values(pool.score("dangerous", [item("pixel", images=(image,))])) == [200]


def test_numerical_libraries_get_one_thread_and_the_parent_keeps_its_own(pool):
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    assert values(pool.score("dangerous", [item("threads")])) == [len(THREAD_VARIABLES)]
    assert {name: os.environ.get(name) for name in THREAD_VARIABLES} == before


def test_two_calls_run_in_two_processes_at_once(pool):
    pids = set()

    def call():
        for _ in range(20):
            pids.update(values(pool.score("dangerous", [item("pid")])))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pids == {float(pid) for pid in pool.pids()}
    assert len(pids) == 2


def test_killed_idle_workers_are_replaced_and_nothing_is_lost(pool):
    before = pool.restarts
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    for _ in range(4):
        assert values(pool.score("dangerous", [item("abc"), item("ab")])) == [3, 2]
    assert pool.restarts - before == 2
    assert len(pool.pids()) == 2


def test_item_that_kills_its_worker_fails_alone(pool):
    results = pool.score("dangerous", [item("a"), item("die"), item("abc")])
    assert values(results) == [1, ErrorCode.INTERNAL, 3]
    assert "failed twice" in results[1].message and "exit code -9" in results[1].message
    assert values(pool.score("dangerous", [item("ab")])) == [2]


def test_worker_killed_in_the_middle_of_a_batch_loses_nothing(tmp_path):
    """Another process kills it, when it has begun the second item; its successor is not killed."""
    pool = ProcessPool(partial(HangsOnce, str(tmp_path / "begun")), workers=1)
    pool.load()
    try:
        killer = threading.Thread(target=kill_once, args=(pool, tmp_path / "begun"))
        killer.start()
        assert values(pool.score("hangs_once", [item("a"), item("ab")])) == [1, 2]
        killer.join()
        assert pool.restarts == 1
    finally:
        pool.close()


def kill_once(pool, begun):
    until = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(pool.pids()[0], signal.SIGKILL)


class HangsOnce(PromptLengthScorer):
    name = "hangs_once"

    def __init__(self, begun):
        super().__init__()
        self._begun = Path(begun)

    def score_item(self, item):
        if item.prompt == "ab" and not self._begun.exists():
            self._begun.touch()
            time.sleep(600)
        return super().score_item(item)


def test_item_that_hangs_fails_alone_after_the_batch_timeout(pool):
    began = time.monotonic()
    results = pool.score("dangerous", [item("a"), item("hang")])
    assert values(results) == [1, ErrorCode.INTERNAL]
    assert "did not answer within 1 s" in results[1].message
    assert time.monotonic() - began < 15


def test_raising_item_fails_alone_without_a_restart():
    pool = ProcessPool(RaisingScorer, workers=1)
    pool.load()
    try:
        assert values(pool.score("raising", [item("a"), item("raise"), item("ab")])) == [1, ErrorCode.INTERNAL, 2]
        assert pool.restarts == 0
    finally:
        pool.close()


def test_worker_is_replaced_after_its_share_of_items():
    pool = ProcessPool(Dangerous, workers=1, recycle_after=4)
    pool.load()
    try:
        [first] = pool.pids()
        until = time.monotonic() + 20
        seen = {first}
        while len(seen) < 2 and time.monotonic() < until:
            seen.update(int(value) for value in values(pool.score("dangerous", [item("pid")] * 2)))
            time.sleep(0.02)
        assert len(seen) == 2
        assert not psutil.pid_exists(first)
    finally:
        pool.close()


def test_failed_load_says_why_and_leaves_no_process():
    pool = ProcessPool(DoesNotLoad, workers=2)
    with pytest.raises(StartFailed, match="did not load: RuntimeError: no weights in /models"):
        pool.load()
    assert pool.pids() == []


def test_replacement_that_does_not_load_is_a_failure_not_a_hang(tmp_path):
    path = tmp_path / "weights"
    path.touch()
    pool = ProcessPool(partial(LoadsOnlyOnce, str(path)), workers=1)
    pool.load()
    try:
        path.unlink()
        os.kill(pool.pids()[0], signal.SIGKILL)
        results = pool.score("dangerous", [item("a"), item("b")])
        assert all(isinstance(result, Failure) and "the weights are gone" in result.message for result in results)
        assert "the weights are gone" in pool.failure
        restarts = pool.restarts
        [again] = pool.score("dangerous", [item("a")])
        assert "next try in" in again.message and pool.restarts == restarts, "a pause, not a load for every batch"
        path.touch()
        until = time.monotonic() + 20
        while pool.failure is not None and time.monotonic() < until:
            pool.recover()
            time.sleep(0.05)
        assert values(pool.score("dangerous", [item("a")])) == [1], "and comes back when it can"
    finally:
        pool.close()


def test_pauses_between_failed_starts_grow_to_a_minute_and_end_with_a_success(monkeypatch):
    now = 0.0
    monkeypatch.setattr("services.kit.dispatch.workers.time.monotonic", lambda: now)
    backoff, pauses = Backoff(), []
    for _ in range(8):
        backoff.failed("no weights")
        backoff.failed("no weights, says the worker beside it")
        pauses.append(backoff.left_s)
        with pytest.raises(StartFailed, match="next try in"):
            backoff.check()
        now += backoff.left_s
        backoff.check()
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.succeeded()
    backoff.failed("again")
    assert backoff.left_s == 1


def test_close_ends_all_processes_and_may_be_called_twice():
    pool = ProcessPool(PromptLengthScorer, workers=2)
    pool.load()
    pids = pool.pids()
    pool.close()
    pool.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_no_workers_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        ProcessPool(PromptLengthScorer, workers=0)


def test_a_pool_names_the_rewards_that_look_at_the_images_alone():
    """Else clients that send no prompts are refused as soon as there are two processes."""
    assert ProcessPool(ConstantScorer, 2).image_only == ConstantScorer.image_only
    assert ProcessPool(PromptLengthScorer, 2).image_only == ()
