"""What a request of small images costs the trainer's reward client: CPU on its own connections, beside httpx's pool.

    python benchmarks/reward_connections.py
    python benchmarks/reward_connections.py --images 16 --rounds 7

A service that answers at once runs in another process. The same requests (16 raw images of 24x48) are sent one at a time, 8
and 32 at a time, in turns over the client's own connections (`wire.connections`) and over httpx's pool, which it had
before. CPU ms are those of this process per request, medians of the rounds; `ratio` is own over pool. `writes` are calls
that write to the socket per request. Exits with 1 where the ratio of 32 at a time is above 0.7.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from httpcore._backends.anyio import AnyIOStream

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.service_process import running_service
from trainer.config import ServiceConfig
from trainer.rewards.payload import Call, encode_samples, make_call
from trainer.rewards.transport import KEEPALIVE_S, ServiceCaller
from trainer.types import Prompt, Sample

LIMIT = 0.7
REQUESTS = 96  # a round


def make(images: int) -> Call:
    """A request of noise; no two images are alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, 24, 48, 3), np.uint8)
    prompt = Prompt(id="p", text="a word in red", weights={"r": 1.0})
    samples = [Sample(f"s{n}", "g", prompt, (image,)) for n, image in enumerate(pixels)]
    call, _ = make_call(samples, encode_samples(samples, "rgb8"), "rgb8", None)
    assert call is not None
    return call


async def cpu_ms(caller: ServiceCaller, call: Call, width: int) -> float:
    """CPU of this process per request, `width` of them at a time."""

    async def once() -> None:
        async with caller.slot():
            scored = await caller.score(call)
        if any(answer.score is None for answer in scored.answers.values()):
            raise SystemExit(f"scores failed: {scored}")

    before = time.process_time()
    for _ in range(REQUESTS // width):
        await asyncio.gather(*(once() for _ in range(width)))
    return 1000 * (time.process_time() - before) / (REQUESTS // width * width)


async def writes(caller: ServiceCaller, call: Call) -> float:
    """Calls that write to the socket, per request."""
    count, write = 0, AnyIOStream.write

    async def counted(self: AnyIOStream, buffer: bytes, timeout: float | None = None) -> None:
        nonlocal count
        count += bool(buffer)
        await write(self, buffer, timeout)

    AnyIOStream.write = counted  # type: ignore[method-assign]
    try:
        await cpu_ms(caller, call, 1)
    finally:
        AnyIOStream.write = write  # type: ignore[method-assign]
    return count / REQUESTS


async def measure(url: str, images: int, rounds: int) -> int:
    call = make(images)
    own, pool = (ServiceCaller("r", ServiceConfig(urls=(url,)), [url], lambda _: None) for _ in range(2))
    limits = httpx.Limits(max_connections=68, max_keepalive_connections=32, keepalive_expiry=KEEPALIVE_S)
    await pool.aclose()
    pool._http = httpx.AsyncClient(
        headers={"Accept-Encoding": "identity"}, limits=limits, trust_env=False, verify=False
    )
    print(f"{images} images a request; {await writes(own, call):.1f} writes a request")
    print("| at a time | own, CPU ms | pool, CPU ms | ratio |\n|---|---|---|---|")
    ratio = 0.0
    for width in (1, 8, 32):
        taken: dict[ServiceCaller, list[float]] = {own: [], pool: []}
        for _ in range(rounds + 1):
            for caller, values in taken.items():
                values.append(await cpu_ms(caller, call, width))
        mine, theirs = (statistics.median(values[1:]) for values in taken.values())  # the first round connects
        ratio = mine / theirs
        print(f"| {width} | {mine:.2f} | {theirs:.2f} | {ratio:.2f} |", flush=True)
    await own.aclose()
    await pool.aclose()
    return int(ratio > LIMIT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with running_service("--behaviour", "constant") as server:
        server.wait_ready()
        return asyncio.run(measure(server.url, options.images, options.rounds))


if __name__ == "__main__":
    sys.exit(main())
