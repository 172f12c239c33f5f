"""Waiting for a judge at start: only for what time can change, and each reason is said once."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from services.kit.judge.client import JudgeClient, JudgeEndpoint, JudgeError, WrongJudgeError
from services.kit.judge.metrics import JudgeMetrics
from tests.support.judges import judging

pytestmark = pytest.mark.anyio

NOBODY = "http://127.0.0.1:9"


class Refusing(BaseHTTPRequestHandler):
    """A judge with a key that the caller does not have."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


async def wait_for(url, seconds, model="judge", say=None):
    client = JudgeClient(JudgeEndpoint(url, model), JudgeMetrics())
    try:
        await (client.wait(seconds, say) if say else client.wait(seconds))
    finally:
        await client.aclose()


async def test_a_judge_that_serves_another_model_is_not_waited_for():
    began = time.monotonic()
    with judging("hello", model="QwenVL") as judge, pytest.raises(WrongJudgeError) as caught:
        await wait_for(judge.url, 30.0, model="UnifiedReward")
    assert time.monotonic() - began < 10
    assert "serves QwenVL, not 'UnifiedReward'" in str(caught.value)
    assert "--model" in str(caught.value) and "--served-model-name UnifiedReward" in str(caught.value)


async def test_a_judge_that_refuses_the_key_is_not_waited_for():
    began = time.monotonic()
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(WrongJudgeError, match=r"refuses the key.*401.*--judge-key-file"):
            await wait_for(f"http://127.0.0.1:{server.server_port}", 30.0)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert time.monotonic() - began < 10


async def test_a_reason_to_wait_is_said_once():
    said = []
    with pytest.raises(JudgeError, match="no judge answers") as caught:
        await wait_for(NOBODY, 3.5, say=said.append)
    assert said == [str(caught.value)]
