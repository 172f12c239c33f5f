"""`python -m loadtest` as a process, against real services and one that is scripted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import make_company, secure_server
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.service_process import running_service

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "correct-horse-battery-staple"


@contextmanager
def fake(*flags: str) -> Iterator[str]:
    """The URL of a ready fake service."""
    with running_service("--log-level", "error", *flags) as server:
        server.wait_ready()
        yield server.url


def loadtest(url: str, *flags: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "loadtest"]
    return subprocess.run(
        [sys.executable, "-W", "error", *start, url, "--mix", "32", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@contextmanager
def loading(url: str, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """A load test that runs."""
    command = [sys.executable, "-m", "loadtest", url, "--mix", "32", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_requests(server: ScriptedServer, count: int) -> None:
    until = time.monotonic() + 30
    while len(server.requests) < count:
        assert time.monotonic() < until, f"{len(server.requests)} requests came"
        time.sleep(0.01)


def numbers(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@contextmanager
def scripted(behave=good) -> Iterator[ScriptedServer]:
    server = ScriptedServer(behave)
    try:
        yield server
    finally:
        server.close()


def test_a_service_that_keeps_up(tmp_path: Path) -> None:
    with fake("--behaviour", "fail_every_nth", "--every", "5") as url:
        done = loadtest(
            url, "--rate", "80", "--duration", "1", "--arrivals", "fixed", "--mix", "32:0.5,64x32:0.5", "--items", "2",
            "--report", str(tmp_path / "r.html"), "--json", str(tmp_path / "r.json"), "--max-error-share", "0.1",
        )  # fmt: skip
    assert done.returncode == 1, done.stderr  # one item in five fails, one in ten may
    assert "20.00% of the items have no score; the limit is 10.00%" in done.stderr
    got = numbers(tmp_path / "r.json")
    assert got["requests"] == {"due": 80, "sent": 80, "answered": 80}
    assert (got["errors"], got["error_share"]) == ({"parse_error": 32}, 0.2)
    assert got["items"] == {"sent": 160, "scored": 128, "cached": 0}
    assert got["latency_ms"]["p50"] > got["service_compute_ms"]["p50"] >= 0
    assert "Latency over time" in (tmp_path / "r.html").read_text()
    assert "80 requests were due, 80 sent, 80 answered" in done.stdout and "parse_error: 32" in done.stdout


def test_waiting_for_a_service_that_is_too_slow_is_part_of_the_latency(tmp_path: Path) -> None:
    """40 requests a second on a service that does 10: the last of 20 waits for about 1.5 s, though each takes 0.1 s.

    A client that sent each request after the last answer would have seen 0.1 s.
    """
    flags = ("--rate", "40", "--duration", "0.5", "--arrivals", "fixed", "--json", str(tmp_path / "r.json"))
    with fake("--behaviour", "slow", "--latency-ms", "100", "--max-batch", "1") as url:
        done = loadtest(url, *flags, "--assert-p95-ms", "750")
    got = numbers(tmp_path / "r.json")
    assert 1250 < got["latency_ms"]["max"] < 6000
    assert got["requests"] == {"due": 20, "sent": 20, "answered": 20}
    assert done.returncode == 1 and "the limit is 750 ms" in done.stderr


def test_unanswered_requests_are_bounded_and_it_says_that_the_rate_was_not_kept(tmp_path: Path) -> None:
    def hang(request):
        return Reply(good(request).body, delay_s=2.0)

    with scripted(hang) as server:
        done = loadtest(
            server.url, "--rate", "100", "--duration", "0.5", "--arrivals", "fixed", "--max-outstanding", "3",
            "--json", str(tmp_path / "r.json"), "--timeout", "10", "--assert-p95-ms", "60000",
        )  # fmt: skip
        assert len(server.requests) == 3
    got = numbers(tmp_path / "r.json")
    assert got["requests"] == {"due": 50, "sent": 3, "answered": 3}
    assert (got["errors"], got["rate"]["kept"]) == ({"not_sent": 47}, False)
    assert "NOTE: the rate was not kept: 47 requests never left" in done.stdout
    assert done.returncode == 1 and "more than 5 % of the requests got no results" in done.stderr


def test_failures_are_told_apart_and_requests_are_not_repeated(tmp_path: Path) -> None:
    replies = [
        Reply({"error": {"code": "overloaded", "message": "full"}}, status=429),
        Reply(b"<html>", status=502),
        Reply(b"not json"),
        Reply({"results": [], "scorer": {"name": "s", "revision": "1", "range": [None, None]}, "request_id": "-"}),
        None,
    ]

    def behave(request):
        reply = replies[(len(server.requests) - 1) % 5]
        return reply or good(request)

    with scripted(behave) as server:
        done = loadtest(
            server.url, "--rate", "10", "--duration", "1", "--arrivals", "fixed", "--json", str(tmp_path / "r.json")
        )
        assert len(server.requests) == 10
    got = numbers(tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert got["errors"] == {"bad_answer": 4, "429 overloaded": 2, "502 unknown": 2}
    assert got["requests"]["answered"] == 2


def test_a_request_without_an_answer_is_a_timeout_of_the_client(tmp_path: Path) -> None:
    with scripted(lambda request: Reply(good(request).body, delay_s=3.0)) as server:
        loadtest(
            server.url, "--rate", "4", "--duration", "1", "--arrivals", "fixed", "--timeout", "0.5",
            "--json", str(tmp_path / "r.json"),
        )  # fmt: skip
    got = numbers(tmp_path / "r.json")
    assert (got["errors"], got["latency_ms"]["p50"]) == ({"client_timeout": 4}, None)


def test_a_service_that_dies_is_reported(tmp_path: Path) -> None:
    flags = ("--rate", "20", "--duration", "1.5", "--json", str(tmp_path / "r.json"))
    with scripted() as server, loading(server.url, *flags) as process:
        wait_for_requests(server, 6)
        server.close()
        process.communicate(timeout=30)
    got = numbers(tmp_path / "r.json")
    assert process.returncode == 0 and set(got["errors"]) == {"no_answer"}
    assert 0 < got["errors"]["no_answer"] < got["requests"]["due"]


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    flags = ("--rate", "20", "--duration", "60", "--json", str(tmp_path / "r.json"))
    with scripted() as server, loading(server.url, *flags) as process:
        wait_for_requests(server, 6)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "interrupted" in errors and "requests were due" in output
    assert 5 <= numbers(tmp_path / "r.json")["requests"]["sent"] < 200


def test_tokens_rewards_and_formats(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# who\ntrainer:{TOKEN} requests_per_minute=6000\n")
    flags = ("--rate", "10", "--duration", "0.5", "--arrivals", "fixed", "--format", "json", "--encoding", "rgb8")
    with fake("--token-file", str(tmp_path / "tokens")) as url:
        refused = loadtest(url, *flags)
        assert (refused.returncode, "wants a token: name its file with --token-file" in refused.stderr) == (2, True)
        out = str(tmp_path / "r.json")
        done = loadtest(url, *flags, "--token-file", str(tmp_path / "tokens"), "--json", out, "--repeat-share", "1")
        assert done.returncode == 0, done.stderr
        assert numbers(tmp_path / "r.json")["items"] == {"sent": 5, "scored": 5, "cached": 4}
        assert TOKEN not in done.stdout + done.stderr + (tmp_path / "r.json").read_text()
        unknown = loadtest(url, *flags, "--token-file", str(tmp_path / "tokens"), "--reward", "beauty")
        assert (unknown.returncode, "--reward 'beauty': fake serves prompt_length" in unknown.stderr) == (2, True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_a_service_behind_a_companys_certificate(tmp_path: Path) -> None:
    company = make_company(tmp_path)
    server = secure_server(company)
    try:
        load = ("--rate", "20", "--duration", "0.5")
        refused = loadtest(server.url, *load)
        assert refused.returncode == 2 and "CERTIFICATE_VERIFY_FAILED" in refused.stderr
        assert "name that one's file with --ca-file" in refused.stderr and not server.requests
        missing = loadtest(server.url, *load, "--ca-file", "missing.pem")
        assert missing.returncode == 2 and "--ca-file missing.pem cannot be read as certificates" in missing.stderr
        trusted = loadtest(server.url, *load, "--ca-file", str(company / "ca.pem"), "--json", str(tmp_path / "n.json"))
        assert trusted.returncode == 0, trusted.stderr
        assert server.requests and numbers(tmp_path / "n.json")["errors"] == {}
    finally:
        server.close()


def test_what_cannot_be_tested_is_said() -> None:
    gone = loadtest("http://127.0.0.1:1")
    assert (gone.returncode, "http://127.0.0.1:1 cannot be reached" in gone.stderr) == (2, True)
    folder = loadtest("http://127.0.0.1:1", "--json", "no/such/folder/r.json")
    assert (folder.returncode, "cannot be written: the folder" in folder.stderr) == (2, True)
    block = "import sys; sys.modules['locust'] = None; from loadtest.command import main; sys.exit(main())"
    missing = loadtest("http://127.0.0.1:1", code=block)
    assert (missing.returncode, "pip install 'rewards-as-services[loadtest]'" in missing.stderr) == (2, True)


def test_help_names_every_option() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    )
    for flag in ("--rate", "--mix", "--max-outstanding", "--assert-p95-ms", "--i-may-load-this-host", "exit status"):
        assert flag in done.stdout


@pytest.mark.parametrize("compares", [True, False])
def test_a_comparing_reward_needs_two_items(compares: bool, tmp_path: Path) -> None:
    with scripted() as server:
        server.info.body["rewards"] = [{"name": "scripted", "revision": "1", "range": [0, 1], "grouped": compares}]
        done = loadtest(server.url, "--rate", "5", "--duration", "0.4")
        assert done.returncode == (2 if compares else 0), done.stderr
        assert ("give --items 2 or more" in done.stderr) is compares
