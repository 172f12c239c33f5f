"""Roles and settings: what each process says, loads and shows, and how it stops."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from services.kit.settings import ServiceSettings, load_settings, without_password
from services.kit.testing.fakes import PromptLengthScorer
from tests.support.redis_services import ask, counts, text_items, until

ROOT = Path(__file__).resolve().parents[4]
REDIS = "redis://127.0.0.1:6379/0"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--role=front"], "role front works through Redis and none is given: add --redis URL"),
        (["--role=worker"], "role worker works through Redis and none is given: add --redis URL"),
        (
            ["--redis=http://u:secret@h/"],
            "a URL that begins with redis://, rediss:// or unix:// is needed; got 'http://h/'",
        ),
        (
            [f"--redis={REDIS}", "--visibility-timeout-s=300"],
            "visibility_timeout_s 300 is not below request_timeout_s 300",
        ),
        (
            [f"--redis={REDIS}", "--visibility-timeout-s=2", "--max-wait-ms=3000"],
            "visibility_timeout_s 2 is not above max_wait_ms 3000",
        ),
        ([f"--redis={REDIS}", "--max-stream-jobs=9"], "max_stream_jobs 9 is below max_items 1024"),
        (["--redis-prefix=a b"], "--redis-prefix"),
        (["--visibility-timeout-s=0.1"], "--visibility-timeout-s"),
        (["--max-deliveries=0"], "--max-deliveries"),
    ],
)
def test_wrong_settings_are_sentences(capsys, flags, message):
    with pytest.raises(SystemExit) as caught:
        load_settings(ServiceSettings, flags)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and message in said and "secret" not in said


def test_the_url_may_come_from_the_environment_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("SERVICE_REDIS", "redis://u:secret@h:1/0")
    settings = load_settings(ServiceSettings, [])
    assert settings.redis.get_secret_value() == "redis://u:secret@h:1/0"
    assert "secret" not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:p%40ss@host:6379/2", "redis://host:6379/2"),
        ("rediss://:p@[::1]:6379", "rediss://[::1]:6379"),
        ("redis://host/0?password=p", "redis://host/0"),
        ("unix://u:p@/run/redis.sock?db=1", "unix:///run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, shown):
    assert without_password(url) == shown


def test_without_redis_its_client_is_not_imported():
    code = (
        "import sys; from services.kit.app import create_app; from services.kit.testing.fakes import ConstantScorer; "
        "from services.kit.settings import ServiceSettings; create_app(ConstantScorer(), 'x', ServiceSettings()); "
        "sys.exit('redis' in sys.modules or 'services.kit.scale' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)


@pytest.mark.anyio
async def test_a_front_loads_nothing_and_a_worker_takes_no_requests(running, redis_server):
    idle, busy = PromptLengthScorer(), PromptLengthScorer()
    async with running(idle, redis=redis_server.url, role="front", wait_ready=False) as front:
        ready = await front.get("/ready")
        assert ready.status_code == 503
        async with running(busy, redis=redis_server.url, role="worker") as worker:
            assert (await worker.get("/ready")).status_code == 200
            refused = await worker.post("/v1/score", json={"items": text_items("a")})
            assert refused.status_code == 503 and "ask a front" in refused.json()["error"]["message"]
            await until(lambda: front.app.state.service.ready)
            assert (await ask(front, text_items("a")))[0]["score"] == 1
            assert (busy.loaded, idle.loaded, idle.batches) == (True, False, [])
            for client, name in ((front, "reward_stream_depth"), (worker, "reward_stream_claimed_total")):
                text = (await client.get("/metrics")).text
                assert f'{name}{{reward="prompt_length"}}' in text
            assert counts(front)["reward_stream_workers"] == 1
        await until(lambda: not front.app.state.service.ready)
        message = (await front.get("/ready")).json()["error"]["message"]
        assert "no live worker serves reward 'prompt_length'" in message and "--role worker" in message


def test_processes_serve_together_and_stop_in_order(serving, redis_server):
    shared = f"--redis={redis_server.url}"
    with serving(shared, "--role=worker") as worker, serving(shared, "--role=front") as front:
        worker.wait_ready()
        front.wait_ready()
        answer = httpx.post(f"{front.url}/v1/score", json={"items": text_items("a", "bb")}, timeout=30).json()
        assert [each["score"] for each in answer["results"]] == [1, 2]
        for server in (worker, front):
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 0
            assert not [line for line in server.errors if '"error"' in line or "Traceback" in line]
    with redis_server.client() as client:
        assert not client.keys("*:open:*") and not client.keys("*:replies:*")
        assert [client.zcard(key) for key in client.keys("*:workers:*")] == []
