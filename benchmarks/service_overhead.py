"""What the service kit and HTTP cost beside the scorer and the decoding of images.

    python benchmarks/service_overhead.py
    python benchmarks/service_overhead.py --items 1 8 32 --size 1024 --requests 100

The first table asks a scorer that does nothing, in a process of its own, for one request of `--items` images after
another. `decode ms` is what decoding those images takes in this process, one after another, measured between the
requests; `overhead ms` is the median of a request's wall time minus that. `not decoded ms` is the wall time of the same
request to a service whose decoding is taken out, so nothing has to be subtracted. The service decodes more than four images in
several threads, so on idle cores the overhead of eight may be below zero; `CPU ms` is the CPU time of the service for
one request, minus that of decoding here, and needs no idle machine. Every item differs, so no score comes from the
cache. Raw pixels are shown for what moving them costs; the limit is for encoded images. The second table asks a scorer that takes `--call-ms` per call, however many items it gets: one request of 32
images against 32 requests of one, one after another and, for comparison, all at once. Exits with 1 when a request of
8 encoded 512 x 512 images costs more than 2 ms, or 32 in one request are less than 3 times as fast as 32 single ones.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import itertools
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before ours are imported

from benchmarks.waiting_service import write_results
from wire.images import decode, encode
from wire.schema import MediaType

ROOT = Path(__file__).resolve().parents[1]
LIMIT_MS = 2.0
LEAST_SPEEDUP = 3.0
MANY = 32
_TYPES: dict[str, MediaType] = {"jpeg": "image/jpeg", "png": "image/png", "rgb8": "image/x-rgb8"}
_BOUNDARY = "0f3a" * 8  # as long as those of clients: a short one takes five times as long to look for
_numbers = itertools.count()


@contextmanager
def fake_service(*flags: str, module: str = "services.kit.testing.fakes") -> Iterator[tuple[str, psutil.Process]]:
    """The URL of a ready fake service, and its process."""
    command = [sys.executable, "-m", module, "--port", "0", "--log-level", "warning", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            if process.stdout.readline().strip() != "fake ready":
                raise SystemExit("the service did not start; its reason is above")
            yield url, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


def make_image(seed: int, size: int) -> Image.Image:
    """Blurred noise: it compresses about as photographs do."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2))


def make_body(images: Sequence[bytes], media_type: MediaType, size: int, form: str) -> tuple[bytes, str]:
    """A request's body and content type. Each item has a number of its own, which makes its score a new one."""
    sized = {"media_type": media_type, "width": size, "height": size}
    sources: list[dict[str, Any]] = [
        {"data": base64.b64encode(image).decode()} if form == "json" else {"part": f"i{number}"}
        for number, image in enumerate(images)
    ]
    items = [
        {"id": str(number), "prompt": "p", "images": [sized | source], "metadata": {"n": next(_numbers)}}
        for number, source in enumerate(sources)
    ]
    request = json.dumps({"items": items}).encode()
    if form == "json":
        return request, "application/json"
    parts = [(b"request", request), *((f"i{number}".encode(), image) for number, image in enumerate(images))]
    cut = b"--" + _BOUNDARY.encode()
    head = cut + b'\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    return b"".join(head % part for part in parts) + cut + b"--\r\n", f"multipart/form-data; boundary={_BOUNDARY}"


class Client:
    """One kept connection, and no more of a client than that: its own time would count."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc)
        self._connection.connect()

    def ask(self, body: bytes, content_type: str) -> float:
        """Seconds until the answer is read. Raises SystemExit unless every item has a score of its own."""
        started = time.perf_counter()
        self._connection.request("POST", "/v1/score", body, {"Content-Type": content_type})
        answer = self._connection.getresponse()
        content = answer.read()
        took = time.perf_counter() - started
        if answer.status != 200 or any(each["cached"] or each["error"] for each in json.loads(content)["results"]):
            raise SystemExit(f"a request failed or was cached: {answer.status} {content[:500]!r}")
        return took

    def close(self) -> None:
        self._connection.close()


def measure_overhead(
    client: Client,
    service: psutil.Process,
    undecoded: Client,
    form: str,
    name: str,
    items: int,
    size: int,
    requests: int,
) -> dict[str, Any]:
    """One row of the first table, in milliseconds."""
    media_type = _TYPES[name]
    encoded = [encode(make_image(seed, size), media_type) for seed in range(items)]
    for _ in range(5):  # import what is imported late, open what is opened once
        client.ask(*make_body(encoded, media_type, size, form))
    walls, decodes = [], []
    cpu_s = -_cpu_s(service)
    for _ in range(requests):
        walls.append(1000 * client.ask(*make_body(encoded, media_type, size, form)))
        started, thread_started = time.perf_counter(), time.thread_time()
        _held = [decode(data, media_type, width=size, height=size) for data in encoded]  # all at once, as a request is
        decodes.append(1000 * (time.perf_counter() - started))
        cpu_s -= time.thread_time() - thread_started
    cpu_s += _cpu_s(service)
    rest = [1000 * undecoded.ask(*make_body(encoded, media_type, size, form)) for _ in range(5 + requests)][5:]
    wall_ms, decode_ms = statistics.median(walls), statistics.median(decodes)
    return {
        "form": form,
        "encoding": name,
        "items": items,
        "size": size,
        "kb": round(sum(map(len, encoded)) / 1000),
        "request_ms": round(wall_ms, 3),
        "decode_ms": round(decode_ms, 3),
        "overhead_ms": round(wall_ms - decode_ms, 3),
        "undecoded_ms": round(statistics.median(rest), 3),
        "cpu_ms": round(1000 * cpu_s / requests, 3),
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure_batching(url: str, size: int, rounds: int) -> dict[str, Any]:
    """Seconds for MANY images in one request, in as many requests one after another, and in as many at once."""
    encoded = [encode(make_image(seed, size), "image/jpeg") for seed in range(MANY)]

    def body(images: Sequence[bytes]) -> tuple[bytes, str]:
        return make_body(images, "image/jpeg", size, "multipart")

    clients = [Client(url) for _ in range(MANY)]
    one, single, at_once = [], [], []
    for _ in range(rounds):
        one.append(clients[0].ask(*body(encoded)))
        singles = [body([image]) for image in encoded]
        single.append(sum(clients[0].ask(*each) for each in singles))
        singles = [body([image]) for image in encoded]
        threads = [
            threading.Thread(target=client.ask, args=each) for client, each in zip(clients, singles, strict=True)
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        at_once.append(time.perf_counter() - started)
    for client in clients:
        client.close()
    one_s, single_s, at_once_s = (statistics.median(each) for each in (one, single, at_once))
    return {
        "size": size,
        "one_request_ms": round(1000 * one_s, 2),
        "single_requests_ms": round(1000 * single_s, 2),
        "at_once_ms": round(1000 * at_once_s, 2),
        "speedup": round(single_s / one_s, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1, 8], help="images in a request")
    parser.add_argument("--size", type=int, default=512, help="width and height in pixels")
    parser.add_argument("--encodings", nargs="+", default=["jpeg", "png", "rgb8"], choices=list(_TYPES))
    parser.add_argument("--requests", type=int, default=60, help="per row of the first table")
    parser.add_argument("--rounds", type=int, default=5, help="of the second table")
    parser.add_argument("--call-ms", type=float, default=20.0, help="time of a call in the second table")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/service_overhead.json"))
    arguments = parser.parse_args()
    rows = []
    print("| body | encoding | images | kB | request ms | decode ms | overhead ms | not decoded ms | CPU ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    flags = ("--behaviour", "constant", "--max-batch", "8")
    with (
        fake_service(*flags) as (url, service),
        fake_service(*flags, module="benchmarks.undecoded_service") as (undecoded_url, _),
    ):
        clients = (Client(url), service, Client(undecoded_url))
        for form, name, items in itertools.product(("multipart", "json"), arguments.encodings, arguments.items):
            row = measure_overhead(*clients, form, name, items, arguments.size, arguments.requests)
            rows.append(row)
            print("| " + " | ".join(str(value) for key, value in row.items() if key != "size") + " |", flush=True)
        clients[0].close()
        clients[2].close()
    flags = ("--behaviour", "slow", "--latency-ms", str(arguments.call_ms), "--max-batch", str(MANY))
    with fake_service(*flags) as (url, _):
        batching = measure_batching(url, arguments.size, arguments.rounds)
    print(
        f"\n| {MANY} images in one request, ms | {MANY} single requests, ms | all at once, ms | speed-up |\n|---|---|---|---|"
    )
    print("| " + " | ".join(str(value) for name, value in batching.items() if name != "size") + " |")
    write_results(arguments.out, "service_overhead", [*rows, batching])
    return int(_misses(rows, batching))


def _misses(rows: Sequence[dict[str, Any]], batching: dict[str, Any]) -> bool:
    judged = [row for row in rows if (row["items"], row["size"]) == (8, 512) and row["encoding"] != "rgb8"]
    return any(row["overhead_ms"] > LIMIT_MS for row in judged) or batching["speedup"] < LEAST_SPEEDUP


if __name__ == "__main__":
    sys.exit(main())
