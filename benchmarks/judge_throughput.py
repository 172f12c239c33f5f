"""Scores per second through the UnifiedReward gateway against the same judge called directly.

    python benchmarks/judge_throughput.py
    python benchmarks/judge_throughput.py --latency-ms 2000 --concurrency 128 --items 1024

The judge is a scripted one in a process of its own that takes `--latency-ms` for each call. `direct`: a client with
`--concurrency` calls at a time that encodes JPEGs and posts chat completions. `gateway`: the same images as raw pixels in
multipart requests of `--per-request` items to `python -m services.unifiedreward`, reward `pointwise`, whose pool has the
same size; as many requests at a time as hold twice the pool. The two sides take turns on new images, so that no cache helps. Then 32 groups of 8 (896 comparisons) go
through the gateway; `in flight` is the most calls its own metric showed. Exits with 1 when the ratio of the medians is
below 0.95.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import write_results
from services.kit.judge.content import image_part, text_part
from wire.connections import Connections

ROOT = Path(__file__).resolve().parents[1]
LEAST_RATIO = 0.95
PROMPT = "a lighthouse at dusk"
ANSWER = (
    "Alignment Score (1-5): 3\nCoherence Score (1-5): 4\nStyle Score (1-5): 3.5\n<answer>Image 1 is better</answer>"
)


def make_images(count: int, size: int, seed: int) -> list[Image.Image]:
    """Smooth pictures of different pixels, whose JPEGs have the size of photographs' (about 100 kB at 512²)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 96, 96, 3), np.uint8)
    return [Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC) for pixels in small]


@contextlib.contextmanager
def process(*command: str, ready_url: str | None = None) -> Iterator[str]:
    """A module as a process; gives `ready_url`, or the URL it prints, when that answers."""
    with subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            url = ready_url or f"{running.stdout.readline().split()[-1]}/ready"
            until = time.monotonic() + 60
            while not _answers(url):
                if running.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{command[0]} did not start")
                time.sleep(0.05)
            yield url.removesuffix("/ready")
        finally:
            running.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


async def direct(judge_url: str, images: list[Image.Image], concurrency: int) -> float:
    """Seconds for all images, `concurrency` calls at a time."""
    slots = asyncio.Semaphore(concurrency)
    # Not httpx's own pool: that one costs five times the CPU, and the comparison would flatter the gateway.
    async with httpx.AsyncClient(base_url=judge_url, timeout=300, transport=Connections(3.0)) as client:

        async def call(image: Image.Image) -> None:
            async with slots:
                part = await asyncio.to_thread(image_part, image, "jpeg")
                content = [part, text_part(PROMPT)]
                body = {"model": "judge", "messages": [{"role": "user", "content": content}], "max_tokens": 512}
                (await client.post("/v1/chat/completions", json=body)).raise_for_status()

        started = time.perf_counter()
        await asyncio.gather(*(call(image) for image in images))
        return time.perf_counter() - started


async def through_gateway(
    url: str, images: list[Image.Image], per_request: int, requests_at_once: int, **item: Any
) -> float:
    """Seconds for all images. Stops the program when a score is missing."""
    slots = asyncio.Semaphore(requests_at_once)
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None), trust_env=False) as client:

        async def request(start: int) -> None:
            chunk = images[start : start + per_request]
            extra = {name: value(start) if callable(value) else value for name, value in item.items()}
            reward = extra.pop("reward")
            items = [
                {
                    "id": str(n),
                    "prompt": PROMPT,
                    "images": [{"part": f"p{n}", "media_type": "image/x-rgb8", "width": i.width, "height": i.height}],
                    **extra,
                }
                for n, i in enumerate(chunk)
            ]
            files: dict[str, Any] = {
                "request": (None, json.dumps({"items": items, "reward": reward}), "application/json")
            }
            files |= {f"p{n}": (f"p{n}", image.tobytes(), "image/x-rgb8") for n, image in enumerate(chunk)}
            async with slots:
                answer = (await client.post(f"{url}/v1/score", files=files)).raise_for_status()
            failed = [result["error"] for result in answer.json()["results"] if result["error"]]
            if failed:
                raise SystemExit(f"{len(failed)} items failed, the first: {failed[0]}")

        started = time.perf_counter()
        await asyncio.gather(*(request(start) for start in range(0, len(images), per_request)))
        return time.perf_counter() - started


async def groups_at_once(url: str, size: int) -> tuple[float, int]:
    """Seconds for 32 groups of 8, and the most judge calls in flight meanwhile."""
    images = make_images(256, size, seed=10_000)
    most, done = 0, False

    async def watch() -> None:
        nonlocal most
        async with httpx.AsyncClient(trust_env=False) as client:
            while not done:
                text = (await client.get(f"{url}/metrics")).text
                found = re.search(r"^reward_judge_in_flight (\S+)$", text, re.MULTILINE)
                most = max(most, int(float(found.group(1))) if found else 0)
                await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    seconds = await through_gateway(url, images, 8, 32, reward="think_pairwise", group_id=lambda start: f"g{start}")
    done = True
    await watching
    return seconds, most


async def measure(judge_url: str, url: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows, at_once = [], math.ceil(2 * args.concurrency / args.per_request)
    for turn in range(args.rounds + 1):
        images = make_images(2 * args.items, args.size, seed=turn)
        ours = await through_gateway(url, images[: args.items], args.per_request, at_once, reward="pointwise")
        bare = await direct(judge_url, images[args.items :], args.concurrency)
        if turn:  # the first turn opens connections and imports what is imported late
            rows.append({"direct_per_s": args.items / bare, "gateway_per_s": args.items / ours})
            print(f"| {turn} | {args.items / bare:.1f} | {args.items / ours:.1f} | {bare / ours:.3f} |", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--items", type=int, default=512, help="Images per turn and side.")
    parser.add_argument("--size", type=int, default=512, help="Width and height of the images.")
    parser.add_argument("--latency-ms", type=float, default=1000, help="Time of a call to the judge.")
    parser.add_argument("--concurrency", type=int, default=64, help="Most calls the judge sees at a time.")
    parser.add_argument("--per-request", type=int, default=16, help="Items in one request to the gateway.")
    parser.add_argument("--rounds", type=int, default=3, help="Turns that count.")
    parser.add_argument("--judge-port", type=int, default=18_471, help="Port of the scripted judge.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/judge_throughput.json"))
    args = parser.parse_args()
    judge_url = f"http://127.0.0.1:{args.judge_port}"
    judge = ["services.kit.testing.scripted_judge", "--port", str(args.judge_port), "--answer", ANSWER]
    judge += ["--latency-ms", str(args.latency_ms)]
    gateway = ["services.unifiedreward", "--port", "0", "--judge-url", judge_url, "--model", "judge"]
    gateway += ["--kinds", "pointwise,think_pairwise", "--concurrency", str(args.concurrency), "--log-level", "warning"]
    with process(*judge, ready_url=f"{judge_url}/v1/models"), process(*gateway) as url:
        print("| turn | direct, items/s | gateway, items/s | ratio |\n|---|---|---|---|", flush=True)
        rows = asyncio.run(measure(judge_url, url, args))
        seconds, most = asyncio.run(groups_at_once(url, args.size))
    ratio = statistics.median(r["gateway_per_s"] for r in rows) / statistics.median(r["direct_per_s"] for r in rows)
    print(f"\nratio of the medians {ratio:.3f}, at least {LEAST_RATIO} is asked for")
    print(f"32 groups of 8: 896 comparisons in {seconds:.1f} s, {896 / seconds:.1f}/s, {most} in flight")
    more = {"ratio": ratio, "groups_s": seconds, "groups_in_flight": most, "settings": {**vars(args), "out": None}}
    write_results(args.out, "judge_throughput", [*rows, more])
    return int(ratio < LEAST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
