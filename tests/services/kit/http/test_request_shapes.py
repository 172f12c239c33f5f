"""Requests that mean one thing however they are written: names of hosts, methods, encodings, framing."""

from __future__ import annotations

import base64
import socket

import httpx
import pytest

from services.kit.testing.fakes import ConstantScorer
from wire.images import encode
from wire.schema import ErrorBody

pytestmark = pytest.mark.anyio

ITEM = {"id": "a", "prompt": "p", "completion": "c"}
TOKEN = "0123456789abcdef-secret"
OURS = ("localhost", "localhost:18080", "LOCALHOST.", "127.0.0.1:5", "[::1]:80", "10.1.2.3", "app.localhost", None)
STRANGE = ("rebound.example", "127.0.0.1.rebound.example", "localhost.rebound.example:80", "x", "[", "", "2130706433")


def headers_of(host, **more):
    """httpx adds a Host by itself; None means that there is none."""
    return {**({} if host is None else {"host": host}), **more}


@pytest.mark.parametrize("host", OURS)
async def test_names_that_stand_for_this_machine_are_served(running, host):
    async with running(ConstantScorer()) as client:
        assert (await client.get("/v1/info", headers=headers_of(host))).status_code == 200


@pytest.mark.parametrize("host", STRANGE)
async def test_a_page_that_gave_its_name_our_address_reads_nothing(running, host):
    async with running(ConstantScorer()) as client:
        for method, path in (("GET", "/"), ("GET", "/v1/info"), ("GET", "/metrics"), ("POST", "/v1/score")):
            answer = await client.request(method, path, headers=headers_of(host))
            error = ErrorBody.model_validate_json(answer.content).error
            assert (answer.status_code, error.code, error.field) == (421, "misdirected", "host"), path
            assert "--allowed-hosts" in error.message
        for probe in ("/health", "/ready"):
            assert (await client.get(probe, headers=headers_of(host))).status_code == 200


async def test_listed_names_are_served_and_others_not(running):
    async with running(ConstantScorer(), allowed_hosts="rewards.example.com, GPU7") as client:
        for host in ("rewards.example.com", "Rewards.Example.com:443", "gpu7", "localhost"):
            assert (await client.get("/v1/info", headers={"host": host})).status_code == 200
        assert (await client.get("/v1/info", headers={"host": "evil.rewards.example.com"})).status_code == 421


async def test_where_other_machines_may_ask_only_listed_names_are_checked(running):
    open_to_all = {"host": "0.0.0.0", "insecure_no_token": True}
    async with running(ConstantScorer(), **open_to_all) as client:
        assert (await client.get("/v1/info", headers={"host": "ocr:18082"})).status_code == 200
    async with running(ConstantScorer(), **open_to_all, allowed_hosts="ocr") as client:
        assert (await client.get("/v1/info", headers={"host": "ocr:18082"})).status_code == 200
        assert (await client.get("/v1/info", headers={"host": "10.0.0.7:18082"})).status_code == 200
        assert (await client.get("/v1/info", headers={"host": "rebound.example"})).status_code == 421


async def test_pages_of_other_hosts_may_not_spend_the_gpu(running):
    """What needs no permission of ours to be sent: `multipart/form-data` and, with --legacy, text."""
    async with running(ConstantScorer(), legacy=True, allowed_hosts="rewards.example.com") as client:
        for origin in ("https://evil.example", "http://6.6.6.6", "null", "http://localhost.evil.example"):
            for path in ("/v1/score", "/"):
                answer = await client.post(path, content=b"x", headers={"origin": origin, "content-type": "text/plain"})
                assert answer.status_code == 403, (origin, path)
                own = "application/octet-stream" if path == "/" else "application/json"  # each protocol's own errors
                assert answer.headers["content-type"] == own
        for origin in ("http://localhost:18080", "http://127.0.0.1:9", "https://rewards.example.com"):
            answer = await client.post("/v1/score", json={"items": [ITEM]}, headers={"origin": origin})
            assert answer.status_code == 200, origin


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/v1/info", "/metrics", "/docs", "/openapi.json"])
async def test_head_is_get_without_the_body(running, path):
    async with running(ConstantScorer()) as client:
        got, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", *(() if path == "/metrics" else ("content-length",))):  # metrics count themselves
        assert head.headers[name] == got.headers[name]


async def test_head_where_there_is_no_get(running, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"trainer:{TOKEN}\n")
    async with running(ConstantScorer(), token_file=tokens) as client:
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert (await client.head("/v1/info")).status_code == 401
        assert (await client.head("/v1/info", headers=bearer)).status_code == 200
        assert (await client.head("/")).status_code == 200
        score = await client.head("/v1/score", headers=bearer)
        assert (score.status_code, score.headers["allow"]) == (405, "POST")
        assert (await client.post("/health", headers=bearer)).headers["allow"] == "GET, HEAD"


async def test_a_path_that_is_nearly_one_is_named(running):
    async with running(ConstantScorer()) as client:
        answer = await client.post("/v1/scores", json={})
    assert answer.json()["error"]["message"] == "no such path: /v1/scores; did you mean /v1/score?"


@pytest.mark.parametrize("encoding", ["identity", "Identity", " IDENTITY ", "identity, Identity", ""])
async def test_a_body_as_it_is_may_say_so(running, encoding):
    async with running(ConstantScorer()) as client:
        answer = await client.post("/v1/score", json={"items": [ITEM]}, headers={"content-encoding": encoding})
    assert answer.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "Identity, gzip", "x-identity"])
async def test_a_compressed_body_is_refused(running, encoding):
    async with running(ConstantScorer()) as client:
        answer = await client.post("/v1/score", json={"items": [ITEM]}, headers={"content-encoding": encoding})
    assert (answer.status_code, answer.json()["error"]["field"]) == (415, "content-encoding")


async def test_an_image_as_a_data_url_in_lines_is_scored_as_itself(running):
    from PIL import Image

    from services.kit.testing.fakes import PromptLengthScorer

    text = base64.encodebytes(encode(Image.new("RGB", (16, 16), "red"), "image/png")).decode()
    plain = {"media_type": "image/png", "data": text.replace("\n", "")}
    async with running(PromptLengthScorer(), legacy=True) as client:
        for data in (text, f"data:image/png;base64,{text}"):
            items = [{"id": "a", "prompt": "four", "images": [plain | {"data": data}], "source_images": [plain]}]
            answer = await client.post("/v1/score", json={"items": items})
            assert answer.json()["results"][0]["score"] == 4
            answer = await client.post("/compute", json={"prompt": ["four"], "image": [data]})
            assert answer.json() == {"rewards": [4.0]}


@pytest.fixture(scope="module")
def server(serving_factory):
    """A real process."""
    with serving_factory() as server:
        server.wait_ready()
        yield server


def raw(port, request):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(request)
        answer = b""
        while data := client.recv(65_536):
            answer += data
    return answer


BOTH = b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n"
SMUGGLED = b"0\r\n\r\nGET /v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("path", [b"/v1/score", b"/health", b"/nowhere"])
@pytest.mark.parametrize(
    "framing", [(b"1.1", BOTH), (b"1.1", BOTH.lower()), (b"1.0", b"Transfer-Encoding: chunked\r\n")]
)
def test_two_ends_of_a_body_are_refused_and_the_connection_is_closed(server, path, framing):
    version, lines = framing
    head = b"POST %s HTTP/%s\r\nHost: localhost\r\nContent-Type: application/json\r\n" % (path, version)
    answer = raw(server.port, head + lines + b"\r\n" + SMUGGLED)
    assert answer.startswith(b"HTTP/1.1 400 ") and b'"transfer-encoding"' in answer
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows is not read as a request"


def test_a_real_head_is_followed_by_the_next_answer(server):
    lines = b"Host: localhost\r\n"
    answer = raw(
        server.port,
        b"HEAD / HTTP/1.1\r\n%s\r\nGET /health HTTP/1.1\r\n%sConnection: close\r\n\r\n" % (lines, lines),
    )
    first, _, second = answer.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 ") and second.startswith(b"HTTP/1.1 200 ")
    assert second.endswith(b'{"status":"alive"}')


def test_the_probes_of_proxies_and_orchestrators_are_answered(server):
    """Kubernetes asks by the address of the pod, compose by its own name, a proxy perhaps by none."""
    for line in (b"Host: 10.2.3.4:18080\r\n", b"Host: ocr\r\n"):
        assert raw(server.port, b"GET /ready HTTP/1.1\r\n%sConnection: close\r\n\r\n" % line).startswith(
            b"HTTP/1.1 200"
        )
    assert raw(server.port, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert httpx.get(server.url + "/v1/info", headers={"host": "rebound.example"}).status_code == 421
