"""Images per second of the OCR service against its bare engine called in a loop, in one run on one machine.

    python benchmarks/ocr_service.py --workers 2 --images 64 --rounds 3

Both sides have the same number of processes with one thread each and read distinct images with one line of text. The
service is the real command, asked over HTTP with multipart bodies by a client that shares its machine. The sides take
turns; the ratio is that of the medians. Prints a table row and writes the numbers to `--out`.
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
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
        for _ in range(settings.workers):
            ours, theirs = context.Pipe()
            context.Process(target=_bare_worker, args=(theirs, settings.engine, settings), daemon=True).start()
            self._pipes.append(ours)

    def run(self, seed: int, count: int, size: int) -> float:
        """Seconds to read `count` images, made beforehand, shared out equally."""
        shares = [count // len(self._pipes) + (n < count % len(self._pipes)) for n in range(len(self._pipes))]
        for number, (pipe, share) in enumerate(zip(self._pipes, shares, strict=True)):
            pipe.send((seed * 1000 + number, share, size))
        for pipe in self._pipes:
            pipe.recv()
        started = time.perf_counter()
        for pipe in self._pipes:
            pipe.send(None)
        for pipe in self._pipes:
            pipe.recv()
        return time.perf_counter() - started

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


@contextmanager
def running_service(flags: Sequence[str]) -> Iterator[str]:
    """The URL of a ready service on a free port."""
    command = [sys.executable, "-m", "services.ocr", *flags, "--port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip().rpartition(" ")[2]
            if process.stdout.readline().strip() != "ocr ready":
                raise SystemExit("the service did not start; its reason is above")
            yield url
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


def measure(arguments: argparse.Namespace, flags: Sequence[str]) -> dict[str, Any]:
    settings = load_settings(OcrSettings, flags)
    count, size, per_request = arguments.images, arguments.size, arguments.per_request
    bare_rates, service_rates, scores = [], [], []
    bare = BareEngines(settings)
    with running_service(flags) as url:
        for turn in range(arguments.rounds):
            bare_rates.append(count / bare.run(turn + 1, count, size))
            images = make_images(-turn - 1, count, size)
            requests = [
                request_files(start, images[start : start + per_request], arguments.encoding)
                for start in range(0, count, per_request)
            ]
            took, read = asyncio.run(ask_service(url, requests, arguments.at_once))
            service_rates.append(count / took)
            scores += read
    bare.stop()
    bare_rate, service_rate = statistics.median(bare_rates), statistics.median(service_rates)
    return {
        "engine": settings.engine,
        "mode": settings.mode,
        "size": size,
        "workers": settings.workers,
        "images": count,
        "rounds": arguments.rounds,
        "encoding": arguments.encoding,
        "bare_images_per_s": round(bare_rate, 2),
        "service_images_per_s": round(service_rate, 2),
        "ratio": round(service_rate / bare_rate, 3),
        "mean_score": round(statistics.fmean(scores), 4),
        "bare_rounds": [round(rate, 2) for rate in bare_rates],
        "service_rounds": [round(rate, 2) for rate in service_rates],
    }


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
    parser.add_argument("--encoding", default="image/x-rgb8", choices=["image/x-rgb8", "image/png", "image/webp"])
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/ocr_service.json"))
    arguments = parser.parse_args()
    flags = ["--engine", arguments.engine, "--mode", arguments.mode, "--workers", str(arguments.workers)]
    row = measure(arguments, flags)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    print("| engine | mode | size | workers | bare img/s | service img/s | ratio | mean score |")
    print("|---|---|---|---|---|---|---|---|")
    columns = ("engine", "mode", "size", "workers", "bare_images_per_s", "service_images_per_s", "ratio", "mean_score")
    print("| " + " | ".join(str(row[column]) for column in columns) + " |")
    if row["ratio"] < LEAST_RATIO:
        raise SystemExit(f"the ratio {row['ratio']} is below {LEAST_RATIO}")


if __name__ == "__main__":
    main()
