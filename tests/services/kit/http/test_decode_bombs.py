"""Small requests that are much work to decode: answered at their deadline or before, in the memory budget, and meanwhile
everyone else is served. A real process; every request is bounded and goes to this machine."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import threading
import time
import zlib
from contextlib import contextmanager

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from wire.images import encode

MIB = 1 << 20
ITEMS = 1024
DEADLINE_MS = 2000
PNG = encode(Image.new("RGB", (64, 64), "red"), "image/png")
JPEG = encode(Image.new("RGB", (64, 64), "red"), "image/jpeg")
WEBP = encode(Image.new("RGB", (64, 64), "red"), "image/webp")


@pytest.fixture(scope="module")
def server(serving_factory):
    with serving_factory("--behaviour", "prompt_length", "--legacy") as server:
        server.wait_ready()
        yield server


@contextmanager
def neighbour(server):
    """Someone else's requests of one picture while the block runs: all are scored, within their deadline of 5 s."""
    stop, seen = threading.Event(), []

    def ask():
        request = {"deadline_ms": 5000, "items": [{"id": "n", "prompt": "four", "images": [part("p")]}]}
        with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
            while not (seen and stop.is_set()):
                answer = client.post("/v1/score", files=form(request, {"p": PNG}))
                ready = client.get("/ready")
                seen.append((answer.status_code, answer.json()["results"][0]["score"], ready.status_code))
                stop.wait(0.02)

    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    rise = [0]

    def watch():
        while not stop.is_set():
            rise[0] = max(rise[0], process.memory_info().rss - before)
            stop.wait(0.02)

    threads = [threading.Thread(target=ask), threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    try:
        yield rise
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(seen) == {(200, 4.0, 200)}


def part(name, media_type="image/png"):
    return {"part": name, "media_type": media_type}


def form(request, parts):
    return {"request": (None, json.dumps(request), "application/json")} | {
        name: (name, data, "application/octet-stream") for name, data in parts.items()
    }


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def riff(*chunks):
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def progressive(side):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", progressive=True, quality=30)
    data = buffer.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2][:400] * 40 + b"\xff\xd9"


NOTES = b"".join(struct.pack("<HHII", 0x9000 + n, 1, 60_000, 8) for n in range(5000))
EXIF = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 5000) + NOTES
SEGMENT = b"\xff\xe1" + struct.pack(">H", len(EXIF) + 2) + EXIF
# One file each, named by every item.
FILES = {
    "a JPEG of half a million empty segments": JPEG[:2] + b"\xff\xfe\x00\x02" * 500_000 + JPEG[2:],
    "a JPEG of a thousand empty segments": JPEG[:2] + b"\xff\xfe\x00\x02" * 1000 + JPEG[2:],
    "a JPEG of padding": JPEG[:2] + b"\xff" * 2_000_000 + JPEG[2:],
    "a JPEG of bytes between segments": JPEG[:20] + b"\x01" * 2_000_000 + JPEG[20:],
    "a JPEG of restarts": JPEG[:-2] + b"\xff\xd0" * 1_000_000 + JPEG[-2:],
    "a JPEG of notes that overlap": JPEG[:2] + SEGMENT * 30 + JPEG[2:],
    "a JPEG of many scans": progressive(1024),
    "a PNG of half a million chunks": PNG[:33] + chunk(b"tEXt", b"") * 300_000 + PNG[33:],
    "a PNG of ten thousand data chunks": PNG[:33] + chunk(b"IDAT", b"") * 10_000 + PNG[33:],
    "a PNG of texts": PNG[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 1_000_000)) * 1000 + PNG[33:],
    "a PNG of frames": PNG[:33] + chunk(b"acTL", struct.pack(">II", 1 << 30, 0)) * 10_000 + PNG[33:],
    "a WebP of a hundred thousand chunks": riff(WEBP[12:], b"JUNK\0\0\0\0" * 100_000),
}


@pytest.mark.parametrize("name", FILES)
def test_one_part_that_every_item_names(server, name):
    items = [{"id": str(n), "prompt": "four", "images": [part("p")]} for n in range(ITEMS)]
    with neighbour(server) as rise:
        started = time.monotonic()
        answer = httpx.post(
            f"{server.url}/v1/score",
            files=form({"deadline_ms": DEADLINE_MS, "items": items}, {"p": FILES[name]}),
            timeout=300,
        )
        seconds = time.monotonic() - started
    assert answer.status_code in (200, 504), answer.text[:300]
    if answer.status_code == 200:
        outcomes = {result["error"]["code"] if result["error"] else "ok" for result in answer.json()["results"]}
        assert outcomes in ({"ok"}, {"bad_input"}), outcomes
    assert seconds < 20, "a bound against a hang"
    assert rise[0] < 300 * MIB


def test_many_large_pictures_end_at_the_deadline(server):
    """A hundred files of 16 megapixels, 70 KB each: more than can be decoded in time, or held in memory."""
    data = encode(Image.new("RGB", (4096, 4096), "red"), "image/png")
    files = {f"p{n}": data for n in range(100)}
    items = [{"id": name, "prompt": "four", "images": [part(name)]} for name in files]
    with neighbour(server):
        answer = httpx.post(
            f"{server.url}/v1/score", files=form({"deadline_ms": 500, "items": items}, files), timeout=60
        )
    assert answer.status_code in (200, 413, 504), answer.text[:300]


@pytest.mark.parametrize("name", ["a JPEG of half a million empty segments", "a JPEG of a thousand empty segments"])
def test_the_other_protocols(server, name):
    """One picture that a pickle holds once and names a thousand times, and one that JSON holds ten times."""
    data = FILES[name]
    with neighbour(server) as rise:
        pickled = httpx.post(
            server.url, content=pickle.dumps({"images": [data] * ITEMS, "prompts": ["four"] * ITEMS}), timeout=60
        )
        text = base64.b64encode(data).decode()
        compute = httpx.post(f"{server.url}/compute", json={"prompt": ["four"] * 10, "image": [text] * 10}, timeout=300)
    fine = name == "a JPEG of a thousand empty segments"
    for answer in (pickled, compute):
        assert (answer.status_code == 200) == fine, answer.text[:300]
    assert rise[0] < 400 * MIB, "bodies of up to 27 MB, as they are and as texts"
