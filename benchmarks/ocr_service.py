"""Images per second of the OCR service against its bare engine called in a loop, in one run on one machine.

    python benchmarks/ocr_service.py --workers 2 --images 64 --rounds 3
    python benchmarks/ocr_service.py --mode line --encodings image/x-rgb8 image/png image/webp

Both sides have the same number of processes with one thread each and read distinct images with one line of text. The
service is the real command, asked over HTTP with multipart bodies by a client that shares its machine and has packed the
images before. The sides and the encodings take turns; the ratios are those of the medians: of images a second, and of the CPU
time an image takes all processes of a side, which needs no idle machine. Prints a table row for each encoding and writes the
numbers to `--out`. Exits with 1 when the service has less than .9 of the engine's pace with the first of the encodings.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import write_results
from services.kit.settings import load_settings
from services.ocr.engines import build_engine
from services.ocr.settings import OcrSettings
from wire.images import encode
from wire.schema import MediaType

LEAST_RATIO = 0.9
_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"


def make_images(seed: int, count: int, size: int) -> list[tuple[str, Image.Image]]:
    """`count` texts of one line, each on a `size` x `size` canvas with a little noise, no two alike."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        text = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(4, 8)))
        ground = np.random.default_rng(rng.getrandbits(32)).integers(215, 240, (size, size, 3), np.uint8)
        image = Image.fromarray(ground)
        font = ImageFont.load_default(max(size // 9, 10))
        place = (size / 2, size * rng.uniform(0.2, 0.8))
        ImageDraw.Draw(image).text(place, text, font=font, fill=(20, 30, rng.randint(0, 120)), anchor="mm")
        made.append((text, image))
    return made


class BareEngines:
    """The engine in a loop, in `workers` processes."""

    def __init__(self, settings: OcrSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[psutil.Process] = []
        for _ in range(settings.workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_bare_worker, args=(theirs, settings.engine, settings), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(psutil.Process(process.pid))

    def run(self, seed: int, count: int, size: int) -> tuple[float, float]:
        """Seconds, and CPU seconds, to read `count` images, made beforehand, shared out equally."""
        shares = [count // len(self._pipes) + (n < count % len(self._pipes)) for n in range(len(self._pipes))]
        for number, (pipe, share) in enumerate(zip(self._pipes, shares, strict=True)):
            pipe.send((seed * 1000 + number, share, size))
        for pipe in self._pipes:
            pipe.recv()
        started, cpu_s = time.perf_counter(), _cpu_s(self._processes)
        for pipe in self._pipes:
            pipe.send(None)
        for pipe in self._pipes:
            pipe.recv()
        return time.perf_counter() - started, _cpu_s(self._processes) - cpu_s

    def stop(self) -> None:
        for pipe in self._pipes:
            pipe.close()


def _bare_worker(pipe: Connection, name: str, settings: OcrSettings) -> None:
    engine = build_engine(name, settings.engine_options())
    engine.load()
    try:
        while True:
            seed, count, size = pipe.recv()
            images = [image for _, image in make_images(seed, count, size)]
            engine.read(images[:1])
            pipe.send("ready")
            pipe.recv()
            for image in images:
                engine.read([image])
            pipe.send("done")
    except EOFError:
        return


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


@contextmanager
def running_service(flags: Sequence[str]) -> Iterator[tuple[str, list[psutil.Process]]]:
    """The URL of a ready service on a free port, and its processes."""
    command = [sys.executable, "-m", "services.ocr", *flags, "--port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip().rpartition(" ")[2]
            if process.stdout.readline().strip() != "ocr ready":
                raise SystemExit("the service did not start; its reason is above")
            main = psutil.Process(process.pid)
            yield url, [main, *main.children(recursive=True)]
        finally:
            process.send_signal(signal.SIGTERM)


def request_files(start: int, batch: Sequence[tuple[str, Image.Image]], media_type: MediaType) -> dict[str, Any]:
    items = []
    files: dict[str, Any] = {}
    for number, (text, image) in enumerate(batch, start):
        part = f"image{number}"
        ref = {"part": part, "media_type": media_type, "width": image.width, "height": image.height}
        items.append({"id": str(number), "prompt": f'a sign "{text}"', "images": [ref]})
        files[part] = (part, encode(image, media_type), "application/octet-stream")
    return {"request": (None, json.dumps({"items": items}), "application/json"), **files}


async def ask_service(url: str, requests: Sequence[dict[str, Any]], at_once: int) -> tuple[float, list[float]]:
    """Seconds until every request is answered, and the scores. Raises when an item failed or came from the cache."""
    gate = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def ask(files: dict[str, Any]) -> list[float]:
            async with gate:
                answer = await client.post("/v1/score", files=files)
            answer.raise_for_status()
            results = answer.json()["results"]
            if any(result["cached"] or result["score"] is None for result in results):
                raise RuntimeError(f"an item failed or was cached: {results}")
            return [result["score"] for result in results]

        started = time.perf_counter()
        scores = await asyncio.gather(*(ask(files) for files in requests))
        return time.perf_counter() - started, [score for group in scores for score in group]


def measure(arguments: argparse.Namespace, flags: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each encoding. Each round has images of its own, the same for all: other bytes are no hit in the cache."""
    settings = load_settings(OcrSettings, flags)
    count, size, per_request = arguments.images, arguments.size, arguments.per_request
    bare_rounds: list[tuple[float, float]] = []
    rounds: dict[MediaType, list[tuple[float, float]]] = {name: [] for name in arguments.encodings}
    scores: dict[MediaType, list[float]] = {name: [] for name in arguments.encodings}
    bare = BareEngines(settings)
    with running_service(flags) as (url, processes):
        for turn in range(arguments.rounds):
            bare_rounds.append(bare.run(turn + 1, count, size))
            images = make_images(-turn - 1, count, size)
            for name in arguments.encodings:
                requests = [
                    request_files(start, images[start : start + per_request], name)
                    for start in range(0, count, per_request)
                ]
                cpu_s = _cpu_s(processes)
                took, read = asyncio.run(ask_service(url, requests, arguments.at_once))
                rounds[name].append((took, _cpu_s(processes) - cpu_s))
                scores[name] += read
    bare.stop()
    bare_s, bare_cpu_s = (statistics.median(each) / count for each in zip(*bare_rounds, strict=True))
    rows = []
    for name in arguments.encodings:
        service_s, service_cpu_s = (statistics.median(each) / count for each in zip(*rounds[name], strict=True))
        row = {
            "engine": settings.engine,
            "mode": settings.mode,
            "size": size,
            "workers": settings.workers,
            "encoding": name,
            "bare_images_per_s": round(1 / bare_s, 2),
            "service_images_per_s": round(1 / service_s, 2),
            "ratio": round(bare_s / service_s, 3),
            "bare_cpu_ms": round(1000 * bare_cpu_s, 2),
            "service_cpu_ms": round(1000 * service_cpu_s, 2),
            "cpu_ratio": round(bare_cpu_s / service_cpu_s, 3),
            "mean_score": round(statistics.fmean(scores[name]), 4),
        }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="rapidocr")
    parser.add_argument("--mode", default="page", choices=["page", "line"])
    parser.add_argument("--workers", type=int, default=2, help="processes on each side")
    parser.add_argument("--size", type=int, default=512, help="width and height in pixels")
    parser.add_argument("--images", type=int, default=64, help="per round and side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--per-request", type=int, default=8, help="items in one request")
    parser.add_argument("--at-once", type=int, default=4, help="requests in flight")
    exact = ["image/x-rgb8", "image/png", "image/webp"]
    parser.add_argument("--encodings", nargs="+", default=exact[:1], choices=exact)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/ocr_service.json"))
    arguments = parser.parse_args()
    flags = ["--engine", arguments.engine, "--mode", arguments.mode, "--workers", str(arguments.workers)]
    rows = measure(arguments, flags)
    print("| " + " | ".join(name.replace("_", " ") for name in rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    write_results(arguments.out, "ocr_service", rows)
    if rows[0]["ratio"] < LEAST_RATIO:
        raise SystemExit(f"the ratio {rows[0]['ratio']} is below {LEAST_RATIO}")


if __name__ == "__main__":
    main()
