"""The gateway as a process: groups in flight together, a judge that dies, the passed-through routes, vLLM beside it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from services.kit.app import create_app
from services.kit.judge.passthrough import PassThrough
from services.kit.testing.scripted_judge import Reply, brightness
from services.unifiedreward.scorer import UnifiedRewardScorer
from services.unifiedreward.settings import UnifiedRewardSettings
from services.unifiedreward.supervisor import Supervisor
from services.unifiedreward.vllm_command import (
    VllmOptions,
    count_gpus,
    installed_version,
    vllm_command,
    vllm_environment,
)
from tests.support.gateways import score_request, unifiedreward_gateway
from tests.support.judges import judging
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[3]
MODULE = "services.unifiedreward"
VERDICT = "<answer>Image {brighter} is better</answer>"


def brighter_wins(question, delay_s=0.0):
    first, second = brightness(question.images[-2:])
    return Reply(f"<answer>Image {1 if first > second else 2} is better</answer>", delay_s=delay_s)


def grey(level):
    return Image.new("RGB", (8, 8), (level,) * 3)


def many_groups(prompts, images):
    """One request's body: each prompt's group has images of rising brightness."""
    shades = [grey(10 + 10 * n) for n in range(images)]
    items = [
        {**item, "id": f"{p}-{item['id']}", "group_id": f"g{p}", "prompt": f"prompt {p}"}
        for p in range(prompts)
        for item in score_request(shades, "", group=True)["items"]
    ]
    return {"items": items}


def test_groups_of_many_prompts_are_in_flight_together():
    """32 prompts × 8 images: 896 comparisons. The judge keeps the first 64 calls until the others would be there."""
    started = itertools.count()

    def behave(question):
        return brighter_wins(question, delay_s=4.0 if next(started) < 64 else 0.0)

    with (
        judging(behave) as judge,
        unifiedreward_gateway(judge.url, "judge", concurrency=64, check_model=False) as url,
    ):
        response = httpx.post(f"{url}/v1/score", json=many_groups(32, 8), timeout=300, trust_env=False)
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert [round(7 * result["score"]) for result in results] == [*range(8)] * 32
    assert judge.calls == 896
    assert judge.at_once == 64, "a group has 28 calls, so one group after another would be fewer"


@contextmanager
def scripted_process(port, latency_ms):
    command = [sys.executable, "-m", "services.kit.testing.scripted_judge", "--port", str(port)]
    process = subprocess.Popen([*command, "--answer", VERDICT, "--latency-ms", str(latency_ms)], cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_judge(port):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False)
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the judge did not start")


def test_all_groups_complete_though_the_judge_is_killed_and_restarted_among_them():
    """90 comparisons, 16 at a time, 0.4 s each: the judge dies in the midst of several groups."""
    port = free_port()
    with scripted_process(port, 400) as first, ThreadPoolExecutor(1) as thread:
        wait_for_judge(port)
        with unifiedreward_gateway(f"http://127.0.0.1:{port}", "judge", concurrency=16, check_model=False) as url:
            asking = thread.submit(httpx.post, f"{url}/v1/score", json=many_groups(6, 6), timeout=300, trust_env=False)
            while 'reward_judge_calls_total{outcome="ok",reward="think_pairwise"}' not in metrics(url):
                assert not asking.done()
            first.kill()
            while httpx.get(f"{url}/ready", trust_env=False).status_code != 503:
                assert not asking.done(), "the judge was killed too late"
            with scripted_process(port, 10):
                results = asking.result().json()["results"]
    assert [round(5 * result["score"]) for result in results] == [*range(6)] * 6
    assert {result["components"]["n_valid"] for result in results} == {5.0}


def metrics(url):
    return httpx.get(f"{url}/metrics", trust_env=False).text


def test_a_model_of_another_kind_does_not_start():
    with judging("A cat sits on a mat.") as judge:
        command = [sys.executable, "-m", MODULE, "--port", "0", "--judge-url", judge.url, "--model", "judge"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "the warm-up item of reward 'think_pairwise' failed: parse_error" in done.stderr
    assert "A cat sits on a mat." in done.stderr


def test_help_names_the_commands_and_a_wrong_one_is_told():
    def run(*arguments):
        command = [sys.executable, "-m", MODULE, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)

    shown = run("--help")
    assert shown.returncode == 0 and "vllm-command" in shown.stdout and "--family" in shown.stdout
    assert "no command 'sreve'" in run("sreve").stderr


# --- the judge's own routes ---


@pytest.fixture
def anyio_backend():
    return "asyncio"


@contextmanager
def token_files(tmp_path):
    (tmp_path / "tokens").write_text("trainer:" + "t" * 32)
    (tmp_path / "key").write_text("judge-key-0123456789")
    yield {"token_file": tmp_path / "tokens", "judge_key_file": tmp_path / "key"}


class Upstream:
    """A judge's server that keeps the headers it was sent and streams when asked to, one event at a time."""

    def __init__(self):
        self.headers = []
        self.bodies = []
        self.more = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, scope, receive, send):
        self.headers.append(dict(scope["headers"]))
        body = (await receive())["body"]
        self.bodies.append(body)
        wanted = json.loads(body) if body else {}
        kind = b"text/event-stream" if wanted.get("stream") else b"application/json"
        headers = [(b"content-type", kind), (b"set-cookie", b"secret=1"), (b"server", b"judge")]
        await send({"type": "http.response.start", "status": wanted.get("status", 200), "headers": headers})
        if wanted.get("stream"):
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            await self.more.wait()
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
            return
        if wanted.get("hang"):
            await asyncio.sleep(30)
        await send({"type": "http.response.body", "body": b'{"object": "list"}'})


def gateway_app(upstream: Upstream, limit: int = 2, **settings) -> FastAPI:
    given = UnifiedRewardSettings(**{"request_timeout_s": 5, "judge_wait_s": 0, **settings})
    scorer = UnifiedRewardScorer(given)
    scorer.client._http._transport = httpx.ASGITransport(app=upstream)
    app = create_app(scorer, "unifiedreward", given, add_routes=PassThrough(scorer.client, limit).add_routes)
    return app


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost")


@pytest.mark.anyio
async def test_the_judges_key_takes_the_place_of_the_callers_token_and_no_other_header_passes(tmp_path):
    upstream = Upstream()
    with token_files(tmp_path) as files:
        async with client_of(gateway_app(upstream, **files)) as client:
            body = b'{"model": "UnifiedReward", "messages": []}'
            assert (await client.post("/v1/chat/completions", content=body)).status_code == 401
            assert upstream.headers == []
            headers = {"Authorization": "Bearer " + "t" * 32, "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4"}
            answer = await client.post("/v1/chat/completions", content=body, headers=headers)
            models = await client.get("/v1/models", headers=headers)
    assert (answer.status_code, models.json()) == (200, {"object": "list"})
    assert upstream.bodies == [body, b""]
    sent = upstream.headers[0]
    assert sent[b"authorization"] == b"Bearer judge-key-0123456789"
    assert b"cookie" not in sent and b"x-forwarded-for" not in sent and b"t" * 32 not in b"".join(sent.values())
    assert "set-cookie" not in answer.headers and answer.headers.get("server") != "judge"


@pytest.mark.anyio
async def test_the_judges_refusals_pass_and_no_other_path_does():
    upstream = Upstream()
    async with client_of(gateway_app(upstream)) as client:
        refused = await client.post("/v1/chat/completions", json={"status": 400})
        assert refused.status_code == 400
        for path in ("/v1/completions", "/v1/models/x", "/sleep", "/v1/chat/completions/../sleep"):
            assert (await client.post(path, json={})).status_code in (404, 405)
    assert len(upstream.headers) == 1


@pytest.mark.anyio
async def test_too_many_and_too_large_and_too_late_calls_are_refused():
    upstream = Upstream()
    async with client_of(gateway_app(upstream, limit=1, request_timeout_s=60, max_body_bytes=2048)) as client:
        assert (await client.post("/v1/chat/completions", content=b"x" * 4096)).status_code == 413
        hanging = asyncio.ensure_future(client.post("/v1/chat/completions", json={"hang": True}))
        while not upstream.bodies:
            await asyncio.sleep(0.005)
        full = await client.post("/v1/chat/completions", json={})
        assert full.status_code == 429 and full.headers["retry-after"] == "1"
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
        assert (await client.post("/v1/chat/completions", json={})).status_code == 200, "the slot is free again"
    async with client_of(gateway_app(upstream, limit=1, request_timeout_s=0.4)) as client:
        late = await client.post("/v1/chat/completions", json={"hang": True})
        assert late.status_code == 504 and "0.4 s" in late.json()["error"]["message"]
        assert (await client.post("/v1/chat/completions", json={})).status_code == 200, "here, too"


@pytest.mark.anyio
async def test_a_judge_that_is_away_is_a_503():
    with_no_judge = UnifiedRewardSettings(judge_url=f"http://127.0.0.1:{free_port()}", judge_wait_s=0)
    scorer = UnifiedRewardScorer(with_no_judge)
    app = create_app(scorer, "x", with_no_judge, add_routes=PassThrough(scorer.client, 1).add_routes)
    async with client_of(app) as client:
        answer = await client.get("/v1/models")
    await scorer.close()
    assert answer.status_code == 503 and "does not answer (ConnectError)" in answer.json()["error"]["message"]


STREAMING_JUDGE = """
import asyncio, sys, uvicorn
from fastapi import FastAPI
from starlette.responses import StreamingResponse
app = FastAPI()
@app.get("/v1/models")
async def models():
    return {"data": [{"id": "judge"}]}
@app.post("/v1/chat/completions")
async def complete():
    async def events():
        try:
            for n in range(600):
                yield f"data: {n}\\n\\n"
                await asyncio.sleep(0.2)
        finally:
            print("ended after", n, flush=True)
    return StreamingResponse(events(), media_type="text/event-stream")
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""


def test_events_pass_one_by_one_and_a_caller_who_leaves_ends_the_judges_work():
    port = free_port()
    judge = subprocess.Popen([sys.executable, "-c", STREAMING_JUDGE, str(port)], stdout=subprocess.PIPE, text=True)
    try:
        wait_for_judge(port)
        with unifiedreward_gateway(f"http://127.0.0.1:{port}", "judge", check_model=False) as url:
            began = time.monotonic()
            with httpx.stream("POST", f"{url}/v1/chat/completions", json={"stream": True}, trust_env=False) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                chunks = answer.iter_text()
                assert [next(chunks), next(chunks)] == ["data: 0\n\n", "data: 1\n\n"]
            assert time.monotonic() - began < 20, "the whole stream takes two minutes"
            assert judge.stdout.readline().startswith("ended after")
    finally:
        judge.kill()
        judge.wait()
        judge.stdout.close()


# --- vLLM beside the gateway ---


def options(**more):
    return VllmOptions(**{"model": "org/model", "judge_url": "http://127.0.0.1:8001", "version": "0.32.0", **more})


def flags(command):
    return dict(flag_pairs(command))


def flag_pairs(command):
    for name, value in zip(command, [*command[1:], ""], strict=True):
        if name.startswith("--"):
            yield name, value


@pytest.mark.parametrize(
    ("more", "gpus", "tensor", "data"),
    [
        ({}, 1, None, None),
        ({}, 0, None, None),
        ({}, 8, None, "8"),
        ({"parallel_mode": "dp"}, 4, None, "4"),
        ({"parallel_mode": "tp"}, 4, "4", None),
        ({"parallel_mode": "none"}, 8, None, None),
        ({"parallel_mode": "dp", "tensor_parallel_size": 2}, 8, "2", "4"),
        ({"parallel_mode": "tp", "data_parallel_size": 2}, 8, "4", "2"),
        ({"data_parallel_size": 2}, 8, None, "2"),
        ({"tensor_parallel_size": 2}, 8, "2", None),
        ({"tensor_parallel_size": 2, "data_parallel_size": 3}, 0, "2", "3"),
    ],
)
def test_the_sizes_follow_the_mode_and_the_gpus(more, gpus, tensor, data):
    found = flags(vllm_command(options(**more), gpus))
    assert (found.get("--tensor-parallel-size"), found.get("--data-parallel-size")) == (tensor, data)


def test_the_command_listens_here_only_and_serves_both_names_with_three_images():
    command = vllm_command(options(extra_args="--seed 1"), 1)
    assert command[:3] == ["vllm", "serve", "org/model"]
    assert flags(command)["--host"] == "127.0.0.1" and flags(command)["--port"] == "8001"
    names = command.index("--served-model-name")
    assert command[names + 1 : names + 3] == ["org/model", "UnifiedReward"]
    assert flags(command)["--limit-mm-per-prompt"] == '{"image":3,"video":0}'
    assert flags(command)["--allowed-media-domains"] == "none.invalid", "a judge that fetches no URL"
    assert command[-2:] == ["--seed", "1"]
    assert not {"--disable-log-requests", "--trust-remote-code"} & set(command)


@pytest.mark.parametrize(
    ("more", "gpus", "sentence"),
    [
        ({"model": "UnifiedReward"}, 1, "no model is named"),
        ({"judge_url": "http://judge:8001"}, 1, "not on this machine"),
        ({"version": "0.10.2"}, 1, "vLLM 0.10.2 is too old, these checkpoints need at least 0.11"),
        ({"version": "new"}, 1, "is not one"),
        ({"tensor_parallel_size": 4, "data_parallel_size": 4}, 8, "needs 16 GPUs and 8 are there"),
    ],
)
def test_what_cannot_be_started_is_told(more, gpus, sentence):
    with pytest.raises(ValueError, match=sentence):
        vllm_command(options(**more), gpus)
    assert vllm_command(options(version="v0.11.0"), 1) and vllm_command(options(version=None), 1)


def test_the_environment_has_no_development_mode_and_the_key_is_no_flag():
    given = {"PATH": "p", "VLLM_SERVER_DEV_MODE": "1", "VLLM_PARALLEL_MODE": "tp", "UNIFIEDREWARD_MODEL": "m"}
    found = vllm_environment({**given, "VLLM_USE_V1": "1"}, "k")
    assert found["VLLM_API_KEY"] == "k" and found["VLLM_USE_V1"] == "1" and found["PATH"] == "p"
    assert not set(given) & set(found) - {"PATH"}
    assert "VLLM_API_KEY" not in vllm_environment(given, None)


def test_gpus_are_those_that_are_visible():
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "0,3"}) == 2
    assert count_gpus({"CUDA_VISIBLE_DEVICES": ""}) == count_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == 0


def test_the_version_is_asked_of_the_executables_own_environment(tmp_path):
    (tmp_path / "vllm").write_text("")
    (tmp_path / "python").write_text("#!/bin/sh\necho 0.13.1\n")
    for path in tmp_path.iterdir():
        path.chmod(0o755)
    assert installed_version(str(tmp_path / "vllm")) == "0.13.1"


# Stands where vLLM would: takes its flags, serves the scripted judge on its port.
FAKE_VLLM = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from services.kit.testing.scripted_judge import main
flags = dict(zip(sys.argv, sys.argv[1:]))
print("fake vLLM", os.getpid(), "DEV" in str(dict(os.environ).get("VLLM_SERVER_DEV_MODE")), file=sys.stderr, flush=True)
main(["--port", flags["--port"], "--model", flags["--served-model-name"], "--answer", {VERDICT!r}])
"""


@pytest.mark.slow
def test_serve_runs_vllm_and_the_gateway_restarts_it_and_stops_both(tmp_path):
    program, log = tmp_path / "vllm", tmp_path / "log"
    program.write_text(FAKE_VLLM)
    program.chmod(0o755)
    command = [sys.executable, "-m", MODULE, "serve", "--port", "0", "--model", "org/model"]
    command += ["--judge-url", f"http://127.0.0.1:{free_port()}", "--vllm-executable", str(program)]
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout.readline().startswith(f"starting {program} serve org/model --host 127.0.0.1")
        url = process.stdout.readline().split()[-1]
        assert process.stdout.readline() == "unifiedreward ready\n"
        [first] = fakes_started(log)
        os.kill(first, signal.SIGKILL)
        answer = httpx.post(f"{url}/v1/score", json=many_groups(2, 4), timeout=300, trust_env=False)
        assert [round(3 * result["score"]) for result in answer.json()["results"]] == [*range(4)] * 2
        _, second = fakes_started(log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert not Path(f"/proc/{second}").exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def fakes_started(log):
    return [int(line.split()[2]) for line in log.read_text().splitlines() if line.startswith("fake vLLM")]


def test_a_process_that_ends_at_once_is_started_ever_more_seldom():
    with Supervisor([sys.executable, "-c", "raise SystemExit(3)"], os.environ, first_pause_s=0.05) as supervisor:
        pauses, wait = [], supervisor._stopping.wait
        supervisor._stopping.wait = lambda seconds: pauses.append(seconds) or wait(seconds)
        until = time.monotonic() + 60
        while supervisor.starts < 5:
            assert time.monotonic() < until, "it is not started again"
            time.sleep(0.02)
    assert pauses[-3:] == sorted(pauses)[-3:] and all(b == 2 * a for a, b in itertools.pairwise(pauses[:4]))


def test_a_start_that_fails_for_the_moment_is_tried_again(monkeypatch):
    """No memory, no process ids: the thread that starts the judge must not end of it."""
    starts = []

    def start(supervisor):
        starts.append(supervisor)
        if len(starts) in (2, 3):
            raise OSError("Resource temporarily unavailable")
        return right(supervisor)

    right = Supervisor._start
    monkeypatch.setattr(Supervisor, "_start", start)
    with Supervisor([sys.executable, "-c", ""], os.environ, first_pause_s=0.02):
        until = time.monotonic() + 60
        while len(starts) < 5:
            assert time.monotonic() < until, "it is not started again"
            time.sleep(0.02)


def test_a_program_that_is_not_there_is_told():
    command = [sys.executable, "-m", MODULE, "serve", "--model", "m", "--vllm-executable", "no-such-vllm"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "did not start" in done.stderr and "no-such-vllm" in done.stderr
