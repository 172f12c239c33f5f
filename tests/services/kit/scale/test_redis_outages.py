"""Redis is missing, goes away, comes back, forgets, or is full."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from services.kit.testing.fakes import PromptLengthScorer
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.redis_services import KEYS, ask, counts, silent_worker, text_items, until

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[4]
FAST = {"visibility_timeout_s": 0.5}


@pytest.fixture
def own_redis(shared_redis, tmp_path):
    """A server of the test's own, to kill; `shared_redis` has seen to it that there is the program."""
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.mark.parametrize("role", ["front", "worker", "all"])
def test_a_service_without_its_redis_does_not_start(role):
    url = f"redis://someone:secret@127.0.0.1:{free_port()}/0"
    command = [sys.executable, "-m", "services.kit.testing.fakes", "--port=0", f"--redis={url}", f"--role={role}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fake did not start: Redis at redis://127.0.0.1:") and "does not answer" in last
    assert last.endswith("start it, or correct --redis")
    assert "secret" not in done.stderr + done.stdout and "someone" not in done.stderr + done.stdout


def test_a_wrong_password_is_said_and_not_shown(shared_redis):
    with shared_redis.client() as client:
        client.config_set("requirepass", "right")
    try:
        url = f"redis://:wrong@127.0.0.1:{shared_redis.port}/0"
        command = [sys.executable, "-m", "services.kit.testing.fakes", "--port=0", f"--redis={url}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 1 and "invalid username-password pair" in done.stderr.splitlines()[-1]
        assert ":wrong" not in done.stderr
    finally:
        with shared_redis.client() as client:
            client.auth("right")
            client.config_set("requirepass", "")


async def test_away_means_503_and_back_means_work(running, own_redis):
    async with running(PromptLengthScorer(), redis=own_redis.url) as both:
        own_redis.kill()
        await until(lambda: not both.app.state.service.ready)
        for answer in (await both.get("/ready"), await both.post("/v1/score", json={"items": text_items("a")})):
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            assert f"Redis at {own_redis.url} does not answer" in answer.json()["error"]["message"]
        assert (await both.get("/health")).status_code == 200
        own_redis.start()
        await until(lambda: both.app.state.service.ready)
        assert (await ask(both, text_items("a")))[0]["score"] == 1


async def test_a_request_in_flight_outlives_a_restart(running, own_redis):
    scorer = PromptLengthScorer()
    async with (
        silent_worker(own_redis.url, scorer.rewards) as silent,
        running(scorer, redis=own_redis.url, role="front", **FAST) as front,
    ):
        asking = asyncio.create_task(ask(front, text_items("a", "bb")))
        await silent.take(1)  # one was taken, one is still in the stream
        own_redis.kill()
        await until(lambda: not front.app.state.service.ready)
        own_redis.start()
        async with running(scorer, redis=own_redis.url, role="worker", **FAST):
            assert [each["score"] for each in await asking] == [1, 2]
        assert counts(front)["reward_stream_resent_total"] == 0, "the append-only file has kept both"


@pytest.mark.parametrize("taken", [0, 2])
async def test_what_redis_forgot_is_sent_again(running, redis_server, taken):
    scorer = PromptLengthScorer()
    async with (
        silent_worker(redis_server.url, scorer.rewards) as silent,
        running(scorer, redis=redis_server.url, role="front", **FAST) as front,
    ):
        asking = asyncio.create_task(ask(front, text_items("a", "bb")))
        with redis_server.client() as client:
            await until(lambda: client.xlen(KEYS.jobs(scorer.rewards["prompt_length"])) == 2)
            await silent.take(taken)
            client.flushall()
        async with running(scorer, redis=redis_server.url, role="worker", **FAST):
            assert [each["score"] for each in await asking] == [1, 2]
        assert counts(front)["reward_stream_resent_total"] == 2


async def test_what_redis_brings_back_from_the_past_is_dropped(running, redis_server):
    """An answered job that is there again, as after a restart that lost the last second."""
    scorer = PromptLengthScorer()
    async with running(scorer, redis=redis_server.url) as both:
        await ask(both, text_items("a"))
        with redis_server.client() as client:
            front = both.app.state.service._dispatcher._name
            client.sadd(KEYS.open_jobs(front), "0123")
            await until(lambda: not client.sismember(KEYS.open_jobs(front), "0123"))
