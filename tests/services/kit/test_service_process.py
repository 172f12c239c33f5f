"""Promises about processes: start, drain, death, ports, huge bodies, slow clients. Real processes on loopback."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.waiting import wait_until

ITEM = {"id": "a", "prompt": "abc", "completion": "c"}
ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20


def post(server, items, **more):
    return httpx.post(server.url + "/v1/score", json={"items": items, **more}, timeout=300)


@pytest.fixture(scope="module")
def shared(serving_factory):
    """One quick service for the tests that leave it as it was."""
    with serving_factory("--body-timeout-s", "30") as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def bounded(serving_factory):
    """A service that takes bodies of up to 8 MiB."""
    with serving_factory("--max-body-bytes", str(8 * MIB)) as server:
        server.wait_ready()
        yield server


def test_prints_its_url_and_readiness_and_serves(shared):
    assert shared.lines.get(timeout=30) == "fake ready\n"
    assert post(shared, [ITEM]).json()["results"][0]["score"] == 3


def test_small_answers_are_not_delayed_by_nagle(shared):
    """Headers and body of an answer are two writes: without TCP_NODELAY the second waits 40 ms for an ACK."""
    times = []
    with httpx.Client(base_url=shared.url) as client:
        for _ in range(20):
            began = time.monotonic()
            client.post("/v1/score", json={"items": [ITEM]}).raise_for_status()
            times.append(time.monotonic() - began)
    assert min(times) < 0.03


class Watch:
    """Highest resident memory of a process and its children while the block runs, above the start, in bytes."""

    def __init__(self, pid):
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self.rise = 0

    def __enter__(self):
        self._base = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _look(self):
        while not self._stop.wait(0.01):
            self.rise = max(self.rise, self._process.memory_info().rss - self._base)


def send_huge(port, head, chunk, count):
    """Send a huge body as fast as it is taken; whatever was answered, once the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        try:
            client.sendall(head)
            for _ in range(count):
                client.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        try:
            while data := client.recv(65_536):
                answer += data
        except ConnectionResetError:
            pass
        return answer


HUGE = {
    "declared": (b"Content-Length: 1073741824\r\n", b"x" * MIB, 1024),
    "chunked": (b"Transfer-Encoding: chunked\r\n", b"100000\r\n" + b"x" * MIB + b"\r\n", 1024),
}


@pytest.mark.parametrize("kind", HUGE)
def test_body_of_one_gigabyte_is_refused_with_flat_memory(bounded, kind):
    length, chunk, count = HUGE[kind]
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + length + b"\r\n"
    with Watch(bounded.process.pid) as watch:
        answer = send_huge(bounded.port, head, chunk, count)
    assert watch.rise < 40 * MIB, f"memory rose by {watch.rise / MIB:.0f} MiB"
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]
    assert b'"too_large"' in answer and b"8388608" in answer
    assert post(bounded, [ITEM]).status_code == 200


def test_httpx_client_reads_the_refusal_of_a_large_body(bounded):
    """The body is more than the sockets hold, so the refusal comes while it is being sent."""
    headers = {"content-type": "application/json"}
    answer = httpx.post(bounded.url + "/v1/score", content=b"x" * (32 * MIB), headers=headers, timeout=20)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


GATED = "tests.services.kit.gated_service"


def test_sigterm_finishes_queued_work_and_exits_0(serving, tmp_path):
    with (
        serving("--gate", tmp_path / "gate", module=GATED) as server,
        concurrent.futures.ThreadPoolExecutor() as threads,
    ):
        server.wait_ready()
        answers = [threads.submit(post, server, [ITEM | {"prompt": "x" * n}]) for n in (1, 2, 3)]
        server.wait_counted("reward_items_in_flight", 3)
        server.terminate()
        wait_until(lambda: httpx.get(server.url + "/ready").status_code == 503, "the signal did not arrive")
        refused = httpx.get(server.url + "/ready")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert post(server, [ITEM]).status_code == 503
        (tmp_path / "gate").touch()
        assert [a.result().json()["results"][0]["score"] for a in answers] == [1, 2, 3]
        assert server.process.wait(timeout=30) == 0


def test_drain_ends_in_time_and_answers_what_is_left(serving, tmp_path):
    """The gate stays shut."""
    arguments = ("--gate", tmp_path / "gate", "--drain-s", "0.2")
    with serving(*arguments, module=GATED) as server, concurrent.futures.ThreadPoolExecutor() as threads:
        server.wait_ready()
        answer = threads.submit(post, server, [ITEM])
        server.wait_counted("reward_items_in_flight", 1)
        server.terminate()
        assert answer.result().json()["results"][0]["error"]["code"] == "overloaded"
        assert server.process.wait(timeout=30) == 0


def test_ctrl_c_exits_0(serving):
    import signal

    with serving() as server:
        server.wait_ready()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) == 0
        assert "Traceback" not in "".join(server.errors)


def run_fake(*arguments):
    command = [sys.executable, "-m", "services.kit.testing.fakes", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def test_port_in_use_is_a_sentence(shared):
    done = run_fake("--port", str(shared.port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{shared.port}" in done.stderr and "choose another --port" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_token_file_is_a_sentence(tmp_path):
    done = run_fake("--port", "0", "--token-file", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert "cannot be read" in done.stderr and "Traceback" not in done.stderr


BROKEN = """
from services.kit.testing.fakes import ConstantScorer
from services.kit.run import serve
from services.kit.settings import ServiceSettings

class NoWeights(ConstantScorer):
    def load(self):
        raise RuntimeError("no weights in /models: download them first")

serve(NoWeights, ServiceSettings(port=0), "broken")
"""


def test_failed_load_exits_1_with_a_sentence():
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "broken did not start: loading failed: no weights in /models: download them first"
    )


def test_token_is_neither_in_the_command_line_nor_in_the_log(serving, tmp_path):
    file = tmp_path / "tokens"
    file.write_text("me:abcdefghijklmnopqrstuvwxyz\n")
    with serving("--token-file", str(file), "--log-level", "debug") as server:
        server.wait_ready()
        bearer = {"Authorization": "Bearer abcdefghijklmnopqrstuvwxyz"}
        assert httpx.get(server.url + "/v1/info").status_code == 401
        assert httpx.get(server.url + "/v1/info", headers=bearer).status_code == 200
        assert "abcdefgh" not in " ".join(psutil.Process(server.process.pid).cmdline())
        server.terminate()
        assert server.process.wait(timeout=30) == 0
        log = server.log()
    assert '"caller": "me"' in log and "abcdefgh" not in log
    assert all(json.loads(line) for line in log.splitlines())


SLOW_HEADERS = """
import services.kit.http.protocol as protocol
protocol.HEADER_TIMEOUT_S = 0.8
from services.kit.testing.fakes import ConstantScorer
from services.kit.run import serve
from services.kit.settings import ServiceSettings
serve(ConstantScorer, ServiceSettings(port=0), "impatient")
"""


def is_closed(client):
    """Wait until the server has closed; hangs are ended by the time-out."""
    client.settimeout(20)
    while client.recv(4096):
        pass
    return True


def test_headers_that_never_end_close_the_connection():
    process = subprocess.Popen([sys.executable, "-c", SLOW_HEADERS], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as silent:
            assert is_closed(silent)
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            assert is_closed(slow)
        with socket.create_connection(("127.0.0.1", port)) as second:
            second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert second.recv(4096).startswith(b"HTTP/1.1 200")
            second.sendall(b"GET /health HTTP/1.1\r\nHo")
            assert is_closed(second)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as idle:
            for pause_s in (1.0, 0.0):  # between two requests a connection may be idle for longer
                idle.request("GET", "/health")
                with idle.getresponse() as answer:
                    assert answer.status == 200 and answer.read() == b'{"status":"alive"}'
                time.sleep(pause_s)
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
        process.stdout.close()


def read_all(client):
    answer = b""
    while data := client.recv(65_536):
        answer += data
    return answer


def test_connections_above_the_limit_get_the_error_body_and_the_others_are_served(serving):
    body = json.dumps({"items": [ITEM]}).encode()
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    head += b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serving("--max-connections", "3") as server, contextlib.ExitStack() as stack:
        server.wait_ready()
        address = ("127.0.0.1", server.port)
        busy = [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(3)]
        for client in busy:
            client.sendall(head)
            assert client.recv(4096).startswith(b"HTTP/1.1 100 "), "its body is waited for"
        with socket.create_connection(address, timeout=5) as fourth:
            answer = read_all(fourth)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in answer
        assert b'"overloaded"' in answer and b"more than 3 connections" in answer
        for client in busy:
            client.sendall(body)
            assert b'"score":3.0' in read_all(client)
        server.wait_ready()


def test_headers_that_grow_without_end_are_refused(shared):
    with socket.create_connection(("127.0.0.1", shared.port), timeout=5) as client:
        answer = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 100_000)
        try:
            while data := client.recv(65_536):
                answer += data
        except ConnectionResetError:
            pass
    assert not answer or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert httpx.get(shared.url + "/health").status_code == 200


def test_what_is_not_http_gets_the_error_body(shared):
    with socket.create_connection(("127.0.0.1", shared.port), timeout=5) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = client.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 400 ") and b'"malformed"' in answer


def test_client_that_hangs_up_frees_its_place(serving, tmp_path):
    with serving("--gate", tmp_path / "gate", module=GATED) as server:
        server.wait_ready()
        body = json.dumps({"items": [ITEM | {"id": str(n), "prompt": "x" * n} for n in range(1, 21)]}).encode()
        head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head % len(body) + body)
            server.wait_counted("reward_items_in_flight", 20)
        server.wait_counted("reward_items_in_flight", 0)  # though the gate is shut
        server.wait_counted("reward_queue_depth", 0)


def test_workers_end_with_a_killed_service(serving):
    """SIGKILL of the service leaves no orphans: the worker processes notice."""
    with serving(module="tests.services.kit.pool_service") as server:
        server.wait_ready()
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert len(children) >= 2
        os.kill(server.process.pid, 9)
        _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_killed_worker_costs_no_item(serving):
    with serving(module="tests.services.kit.pool_service") as server:
        server.wait_ready()
        workers = [c for c in psutil.Process(server.process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
        assert len(workers) == 2
        for worker in workers:
            worker.kill()
        items = [ITEM | {"id": str(n), "prompt": "x" * n} for n in range(1, 21)]
        assert [r["score"] for r in post(server, items).json()["results"]] == list(range(1, 21))
        assert "reward_worker_restarts 2.0" in httpx.get(server.url + "/metrics").text


def test_not_ready_while_no_worker_can_be_replaced_and_ready_again_by_itself(serving, tmp_path):
    weights = tmp_path / "weights"
    weights.touch()
    with serving("--weights", str(weights), module="tests.services.kit.pool_service") as server:
        server.wait_ready()
        weights.unlink()
        for worker in psutil.Process(server.process.pid).children():
            if "spawn_main" in " ".join(worker.cmdline()):
                worker.kill()
        result = post(server, [ITEM]).json()["results"][0]
        assert (result["score"], result["error"]["code"]) == (None, "internal")
        for answer in (httpx.get(server.url + "/ready"), post(server, [ITEM])):
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            assert "the weights are gone" in answer.json()["error"]["message"]
        weights.touch()
        server.wait_ready()
        assert post(server, [ITEM]).json()["results"][0]["score"] == 3


def test_sigterm_while_loading_ends_at_once(serving):
    with serving("--load-s", "60", module="tests.services.kit.pool_service") as server:
        until = time.monotonic() + 30
        while len(children := psutil.Process(server.process.pid).children()) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        server.terminate()
        assert server.process.wait(timeout=10) == 0
        _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


@pytest.mark.slow  # test_sigterm_while_loading_ends_at_once and the killed one show the same of their ends
def test_workers_end_with_a_drained_service(serving):
    with serving(module="tests.services.kit.pool_service") as server:
        server.wait_ready()
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert post(server, [ITEM]).json()["results"][0]["score"] == 3
        server.terminate()
        assert server.process.wait(timeout=30) == 0
        _, alive = psutil.wait_procs(children, timeout=30)
        assert "Traceback" not in "".join(server.errors)
    assert not alive
