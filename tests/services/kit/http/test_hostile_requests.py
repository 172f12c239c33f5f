"""What strangers may send to a service's port: refused with the right status, nothing run, neighbours served."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import select
import socket
import struct
import threading
import time
import zlib
from contextlib import contextmanager, suppress

import httpx
import pytest
from PIL import Image

from services.kit.http.intake import MAX_JSON_VALUES
from services.kit.testing.fakes import PromptLengthScorer
from tests.support.audit_events import recorded
from wire.images import encode

MIB = 1 << 20
PNG = encode(Image.new("RGB", (4, 4), "red"), "image/png")
GOOD = {"items": [{"id": "a", "prompt": "four", "completion": "c"}]}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(serving_factory):
    """A real process that speaks every protocol. A body has three seconds to arrive."""
    flags = ("--behaviour", "prompt_length", "--legacy", "--body-timeout-s", "3", "--cache-entries", "0")
    with serving_factory(*flags) as server:
        server.wait_ready()
        yield server


@contextmanager
def neighbour(url):
    """Someone else's small requests, one after another, while the block runs: all must be answered, and soon."""
    stop, waits = threading.Event(), []

    def ask():
        with httpx.Client(base_url=url, timeout=20) as client:
            while not (waits and stop.is_set()):
                started = time.monotonic()
                answer = client.post("/v1/score", json=GOOD)
                waits.append(time.monotonic() - started if answer.status_code == 200 else float("inf"))
                stop.wait(0.02)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waits
    finally:
        stop.set()
        thread.join()
    assert max(waits) < 5, f"a neighbour waited {max(waits)} s"


def code(answer):
    """The error code; also checks that the body is the contract's."""
    tree = answer.json()
    assert set(tree) == {"error"} and tree["error"]["message"]
    return tree["error"]["code"]


def with_item(**fields):
    return json.dumps({"items": [{"id": "a", "prompt": "p", "completion": "c", **fields}]}).encode()


def nested(depth, opening=b"[", closing=b"]"):
    return (
        b'{"items":[{"id":"a","prompt":"p","completion":"c","metadata":{"x":' + opening * depth + b"1" + closing * depth
    )


BODIES = {
    "a million items": (b'{"items":[' + b"{}," * 999_999 + b"{}]}", 413, "too_large"),
    "a million small items": (b'{"items":[' + b'{"id":"a"},' * 400_000 + b"{}]}", 413, "too_large"),
    "six million values": (b'{"items":[' + b"[]," * 3_000_000 + b"0]}", 413, "too_large"),
    "a million keys": (
        b'{"items":[{"metadata":{' + b",".join(b'"%d":0' % n for n in range(MAX_JSON_VALUES)),
        413,
        "too_large",
    ),
    "deep lists": (nested(200_000), 400, "malformed"),
    "deep objects": (nested(100_000, b'{"a":', b"}"), 400, "malformed"),
    "a number of a million digits": (b'{"items":' + b"9" * MIB + b"}", 400, "malformed"),
    "an id of a million digits": (with_item(id=0).replace(b'"id": 0', b'"id": ' + b"9" * MIB), 400, "malformed"),
    "an exponent beyond numbers": (with_item(metadata={"x": 0}).replace(b": 0}", b": 1e999999}"), 422, "invalid"),
    "NaN": (with_item(metadata={"x": float("nan")}), 400, "malformed"),
    "Infinity": (b'{"items":[],"deadline_ms":Infinity}', 400, "malformed"),
    "a deadline beyond integers": (b'{"items":[],"deadline_ms":1e300}', 422, "invalid"),
    "lone surrogate in a prompt": (rb'{"items":[{"id":"a","prompt":"\ud800","completion":"c"}]}', 400, "malformed"),
    "lone surrogate in a key": (rb'{"\udfff":1}', 400, "malformed"),
    "surrogate bytes": (b'{"items":[{"id":"\xed\xa0\x80"}]}', 400, "malformed"),
    "overlong bytes": (b'{"items":[{"id":"\xc0\xaf"}]}', 400, "malformed"),
    "utf-16": ('{"items":[]}'.encode("utf-16"), 400, "malformed"),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), 400, "malformed"),
    "a pickle": (pickle.dumps(GOOD), 400, "malformed"),
    "a zip": (b"PK\x03\x04" + b"\0" * 100, 400, "malformed"),
    "nothing": (b"", 400, "malformed"),
    "a scalar": (b"1", 422, "invalid"),
    "an unknown field": (with_item(__class__="x"), 422, "invalid"),
    "ids alike": (json.dumps({"items": GOOD["items"] * 2}).encode(), 422, "invalid"),
    "a prompt beyond its limit": (with_item(prompt="x" * 65_537), 422, "invalid"),
    "too many images": (with_item(images=[{}] * 10_000), 413, "too_large"),
}


@pytest.mark.parametrize("name", BODIES)
def test_hostile_json(server, name):
    body, status, error = BODIES[name]
    with neighbour(server.url):
        answer = httpx.post(f"{server.url}/v1/score", content=body, headers=JSON, timeout=30)
    assert (answer.status_code, code(answer)) == (status, error), answer.text


def part(name, data, more=b""):
    return b'--xx\r\nContent-Disposition: form-data; name="' + name + b'"\r\n' + more + b"\r\n" + data + b"\r\n"


REQUEST = part(b"request", json.dumps(GOOD).encode())
END = b"--xx--\r\n"
MULTIPART = {
    "no boundary": ("multipart/form-data", REQUEST + END, 400),
    "empty boundary": ('multipart/form-data; boundary=""', REQUEST + END, 400),
    "another boundary": ("multipart/form-data; boundary=yy", REQUEST + END, 400),
    "request twice": (None, REQUEST * 2 + END, 400),
    "image twice": (None, REQUEST + part(b"a", PNG) * 2 + END, 400),
    "part without a name": (None, REQUEST + b"--xx\r\nContent-Type: image/png\r\n\r\nx\r\n" + END, 400),
    "part that no image names": (None, REQUEST + part(b"a", PNG) + END, 422),
    "no request": (None, part(b"a", PNG) + END, 400),
    "request that is not JSON": (None, part(b"request", PNG) + END, 400),
    "cut off": (None, REQUEST + part(b"a", PNG)[:-9], 400),
    "a header of a megabyte": (None, part(b"request", b"{}", b"X: " + b"a" * MIB + b"\r\n") + END, 400),
    "a hundred thousand headers": (None, part(b"request", b"{}", b"X: a\r\n" * 100_000) + END, 400),
    "a name of a megabyte": (None, part(b"a" * MIB, PNG) + END, 400),
    "twenty thousand parts": (None, REQUEST + b"".join(part(b"%d" % n, b"") for n in range(20_000)) + END, 413),
    "broken encoding of a name": (None, REQUEST + part(b"\xff\xfe", PNG) + END, 422),
}


@pytest.mark.parametrize("name", MULTIPART)
def test_hostile_multipart(server, name):
    kind, body, status = MULTIPART[name]
    headers = {"Content-Type": kind or "multipart/form-data; boundary=xx"}
    with neighbour(server.url):
        answer = httpx.post(f"{server.url}/v1/score", content=body, headers=headers, timeout=30)
    assert answer.status_code == status, answer.text
    assert code(answer)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *more, pixels=None):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress(b"\0" * (height * (width * 3 + 1))) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_of_many_scans():
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 2000), "red").save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 20_000 + b"\xff\xd9"


BOMB = zlib.compress(b"x" * 200 * MIB)
IMAGES = {
    "pixels": ("image/png", png(50_000, 50_000, pixels=b""), "50000x50000 = 2500000000 pixels; the limit is 16777216"),
    "data beyond its size": ("image/png", png(4, 4, pixels=BOMB), "not a readable"),
    "chunks": ("image/png", png(4, 4, *[chunk(b"tEXt", b"")] * 20_000), "more than 16384 chunks"),
    "scans": ("image/jpeg", jpeg_of_many_scans(), "20010 scans; the limit is 64"),
    "a page called PNG": ("image/png", b"<script>alert(1)</script>" + PNG, "not a readable"),
    "a program": ("image/jpeg", b"\x7fELF" + b"\0" * 1000, "not a readable"),
    "a GIF": ("image/png", b"GIF89a\1\0\1\0\0\0\0;", "it begins as a GIF does; PNG, JPEG and WebP are taken"),
    "PostScript": (
        "image/jpeg",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
        "not a readable",
    ),
    "a vector drawing": ("image/webp", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "it begins as an SVG does"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_hostile_image_fails_alone(server, name):
    media_type, data, message = IMAGES[name]
    image = {"media_type": media_type, "data": base64.b64encode(data).decode()}
    items = [{"id": "bad", "prompt": "p", "images": [image]}, *GOOD["items"]]
    with neighbour(server.url):
        answer = httpx.post(f"{server.url}/v1/score", json={"items": items}, timeout=30)
    bad, good = answer.json()["results"]
    assert (bad["score"], good["score"]) == (None, 4)
    assert bad["error"]["code"] == "bad_input" and message in bad["error"]["message"]


HARMLESS = {
    "text": ("image/png", png(4, 4, chunk(b"zTXt", b"k\0\0" + BOMB))),
    "international text": ("image/png", png(4, 4, chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB))),
    "much text": (
        "image/png",
        png(4, 4, *[chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(b"x" * 1_000_000)) for n in range(70)]),
    ),
    "colour profile": ("image/png", png(4, 4, chunk(b"iCCP", b"k\0\0" + BOMB))),
    "damaged notes": ("image/png", png(4, 4, chunk(b"gAMA", b""), chunk(b"iCCP", b"k\0\7"), chunk(b"tEXt", b"\0\0"))),
    "a JPEG called PNG": ("image/png", encode(Image.new("RGB", (4, 4)), "image/jpeg")),
    "a PNG called JPEG": ("image/jpeg", PNG),
    "a WebP called PNG": ("image/png", encode(Image.new("RGB", (4, 4)), "image/webp")),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_touch_the_pixels_is_no_reason_to_refuse_them(server, name):
    """Whatever a file says beside its pixels, or is called, costs nothing, because nobody reads it."""
    media_type, data = HARMLESS[name]
    image = {"media_type": media_type, "data": base64.b64encode(data).decode()}
    with neighbour(server.url):
        answer = httpx.post(
            f"{server.url}/v1/score", json={"items": [{"id": "a", "prompt": "four", "images": [image]}]}
        )
    [result] = answer.json()["results"]
    assert result["score"] == 4, result


def test_what_follows_an_image_is_not_looked_at(server):
    """A file that is a valid PNG and something else as well is a PNG, and nothing else."""
    data = PNG + b"PK\x03\x04<?php system('id') ?><script>alert(1)</script>"
    image = {"media_type": "image/png", "data": base64.b64encode(data).decode()}
    answer = httpx.post(f"{server.url}/v1/score", json={"items": [{"id": "a", "prompt": "four", "images": [image]}]})
    [result] = answer.json()["results"]
    assert result["score"] == 4


class Command:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_hostile_pickles(server, tmp_path):
    pickles = {
        "command": (pickle.dumps({"images": [Command(tmp_path / "made")]}), 400),
        "command that the standard pickler names": (pickle.dumps(Command(tmp_path / "made"), 2), 400),
        "a million items": (pickle.dumps({"images": [b""] * 1_000_000, "prompts": []}), 413),
        "deep": (b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".", 413),
        "huge bytes": (b"\x80\x04\x8e" + b"\xff" * 8 + b"x.", 400),
        "a million marks": (b"\x80\x04" + b"(" * 1_000_000 + b".", 413),
        "JSON": (json.dumps(GOOD).encode(), 400),
    }
    for name, (body, status) in pickles.items():
        with neighbour(server.url):
            answer = httpx.post(server.url, content=body, timeout=30)
        assert answer.status_code == status, name
        assert list(pickle.loads(answer.content)) == ["error"], name
    assert not list(tmp_path.iterdir())


def exchange(port, *pieces, pause=0.0, timeout=15):
    """Send the pieces until an answer begins, then read until the server closes or the answer is complete."""
    received = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock,
        suppress(ConnectionError, TimeoutError),
    ):
        for piece in pieces:
            sock.sendall(piece)
            if select.select([sock], [], [], pause)[0]:
                break
        while block := sock.recv(65_536):
            received += block
            if b"onnection: close" not in received and received.rstrip().endswith(b"}"):
                break
    return received


def head(*lines, path="/v1/score"):
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *lines, "", "")
    return "\r\n".join(lines).encode()


RAW = {
    "length below the body": ((head("Content-Length: 5"), json.dumps(GOOD).encode()), b"400 "),
    "length with a sign": ((head("Content-Length: +5"), b"12345"), b"400 "),
    "length below zero": ((head("Content-Length: -5"), b"12345"), b"400 "),
    "length with an exponent": ((head("Content-Length: 1e3"), b"12345"), b"400 "),
    "length of many digits": ((head("Content-Length: " + "9" * 30), b"12345"), b"4"),
    "lengths that differ": ((head("Content-Length: 5", "Content-Length: 6"), b"123456"), b"400 "),
    "length and chunks": ((head("Content-Length: 5", "Transfer-Encoding: chunked"), b"0\r\n\r\n"), b"4"),
    "unknown transfer": ((head("Transfer-Encoding: gzip, chunked"), b"0\r\n\r\n"), b"400 "),
    "chunk size of letters": ((head("Transfer-Encoding: chunked"), b"zz\r\n12\r\n"), b"400 "),
    "chunk beyond its size": ((head("Transfer-Encoding: chunked"), b"1\r\n123\r\n0\r\n\r\n"), b"400 "),
    "compressed": ((head("Content-Encoding: gzip", "Content-Length: 5"), b"12345"), b"415 "),
    "length above the limit": ((head(f"Content-Length: {1 << 40}"),), b"413 "),
    "headers of a megabyte": ((b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * (MIB // 6),), b"431 "),
    "line feed in a header": ((head("X: a\nEvil: b", "Content-Length: 0"),), b"4"),
    "not HTTP": ((b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,), b"400 "),
    "body that stops": ((head("Content-Length: 500"), b'{"items":'), b"408 "),
}


@pytest.mark.parametrize("name", RAW)
def test_hostile_framing(server, name):
    pieces, status = RAW[name]
    with neighbour(server.url):
        received = exchange(server.port, *pieces)
    assert received.startswith(b"HTTP/1.1 " + status), received[:300]
    assert b"500 " not in received.split(b"\r\n")[0]


def test_many_slow_bodies_do_not_stop_others(server):
    """One byte at a time, over fifty connections; each is refused when its three seconds are over."""
    answers = []

    def drip():
        answers.append(exchange(server.port, head("Content-Length: 500"), *[b" "] * 60, pause=0.1))

    with neighbour(server.url):
        threads = [threading.Thread(target=drip) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 50
    assert all(b"408 " in answer[:20] for answer in answers)


PATHS = [
    "file:///etc/passwd",
    "/etc/passwd",
    "../../../../etc/passwd",
    "..\\..\\x",
    "/dev/zero",
    "a\0b",
    "~/.ssh/id_rsa",
    "C:\\x",
]


@pytest.mark.anyio
@pytest.mark.parametrize("path", PATHS)
async def test_no_path_of_a_request_reaches_the_disk(running, path):
    """The interpreter reports every file it opens; none has to do with what a request says."""
    image = {"media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    item = {
        "id": path,
        "group_id": path,
        "prompt": path,
        "completion": path,
        "targets": [path],
        "metadata": {path: path, "file": [path]},
        "images": [image, image | {"data": path}, {"media_type": "image/png", "part": path}],
    }
    async with running(PromptLengthScorer(), legacy=True) as client:
        with recorded() as events:
            await client.post("/v1/score", json={"items": [item], "request_id": path})
            await client.post("/v1/score", json={"items": [item | {"images": [image]}], "request_id": path})
            await client.post("/v1/score", json={"items": [item], "reward": path})
            if "\0" not in path:
                await client.post("/v1/score", files={"request": (path, b"{}"), path: (path, PNG)})
                await client.get("/" + path.lstrip("/"))
                await client.post("/v1/score", json=GOOD, headers={"X-Request-ID": path, "Authorization": path})
            await client.post("/", content=pickle.dumps({"images": [PNG, path.encode()], "prompts": [path] * 2}))
            await client.post("/compute", json={"prompt": [path], "image": [path]})
    files = [args for event, args in events if event in {"open", "os.listdir", "os.scandir", "os.mkdir", "os.remove"}]
    assert not [
        args for args in files if any(mark in str(args) for mark in ("passwd", "zero", "ssh", "..", "C:", "a\0b"))
    ]
    assert not [event for event, _ in events if event in {"subprocess.Popen", "os.system", "socket.connect", "exec"}]
