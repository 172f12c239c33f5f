"""`python -m services.unifiedreward serve`: a real vLLM beside the gateway, killed while it judges a group."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.support.gateways import metric, post, ready_status, score_request, wait_for_status
from tests.support.ports import free_port
from tests.support.vllm_server import CPU_FLAGS, RUN_VARIABLES, START_TIMEOUT_S, VLLM

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

VERDICT = {"structured_outputs": {"regex": r"<think>[a-z]{500}</think><answer>Image [12] is better</answer>"}}


@pytest.fixture
def service(alone, checkpoint):
    """The running command: its process and the gateway's URL. At the end vLLM's group is killed, whatever happened."""
    flags = [
        *(f"--model={checkpoint}", f"--judge-url=http://127.0.0.1:{free_port()}", "--port=0", "--log-level=warning"),
        *(f"--vllm-executable={VLLM}", f"--vllm-extra-args={shlex.join(CPU_FLAGS)}", "--vllm-max-model-len=4096"),
        *(f"--extra-body={json.dumps(VERDICT)}", "--order=lower-first", "--min-valid=4"),
        "--no-check-model",
        "--cache-entries=0",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "services.unifiedreward", "serve", *flags],
        env=os.environ | RUN_VARIABLES | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert str(VLLM) in process.stdout.readline()
        url = process.stdout.readline().split()[-1]
        wait_for_status(url, 200, START_TIMEOUT_S)
        yield process, url
    finally:
        groups = [child.pid for child in psutil.Process(process.pid).children()] if process.poll() is None else []
        process.kill()
        process.wait()
        process.stdout.close()
        for group in groups:
            os.killpg(group, signal.SIGKILL)


def vllm_group(process):
    """The process that leads vLLM's group, and all in it."""
    [leader] = psutil.Process(process.pid).children()
    return leader.pid, [leader, *leader.children(recursive=True)]


def test_vllm_killed_in_the_middle_of_a_group_costs_time_and_no_score(service):
    """SIGKILL of all of vLLM's processes: not ready; started again; ready; and the group's scores are those it would
    have had. A request whose deadline passes meanwhile gets no wrong score. SIGTERM then ends both, vLLM's children too."""
    process, url = service
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(5)]
    group = score_request(images, "a red square", group=True)
    before = scores(post(f"{url}/v1/score", group))
    assert len(set(before)) > 1
    leader, members = vllm_group(process)
    with ThreadPoolExecutor(2) as threads:
        patient = threads.submit(post, f"{url}/v1/score", {**group, "deadline_ms": 290_000}, 300.0)
        hasty = threads.submit(post, f"{url}/v1/score", {**group, "deadline_ms": 3_000}, 60.0)
        until = time.monotonic() + 30
        while metric(url, "reward_judge_in_flight") < 2:
            assert time.monotonic() < until, "no call reached vLLM"
        os.killpg(leader, signal.SIGKILL)
        wait_for_status(url, 503, 30.0)
        late = hasty.result()
        if late.status_code != 504:  # 504: nothing was decided in time
            for each, right in zip(late.raise_for_status().json()["results"], before, strict=True):
                assert each["score"] in (None, right)
                assert (each["score"] is None) == (each["error"] is not None)
        assert ready_status(url) == 503
        assert post(f"{url}/v1/score", group).status_code == 503
        assert not patient.done()
        assert scores(patient.result()) == before
    wait_for_status(url, 200, 30.0)
    assert metric(url, "reward_judge_retries_total") > 0
    assert vllm_group(process)[0] != leader
    members += vllm_group(process)[1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert psutil.wait_procs(members, timeout=30)[1] == []


def scores(response):
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert [each["error"] for each in results] == [None] * len(results)
    return [each["score"] for each in results]
