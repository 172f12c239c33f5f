"""Images per second of the UnifiedReward gateway before a real vLLM server, against that server asked directly.

    python benchmarks/real_vllm_throughput.py
    python benchmarks/real_vllm_throughput.py --items 128 --rounds 1

vLLM runs on the CPU (`bash scripts/vllm_cpu_env.sh` makes its environment) with a tiny random Qwen3-VL whose answers a
grammar holds to the pointwise form. Both sides ask about distinct pictures, with the same text, number of calls in
flight and answer length; request bodies are made beforehand. The gateway gets pictures as PNG, in requests of
`--per-request` items that are all sent at once, decodes them, and encodes them as the JPEGs that the direct side sends
ready-made. Sides take turns; the ratio is that of the medians. Client, gateway and vLLM share the machine's cores, so
what the gateway computes is taken from vLLM: with a model on GPUs it would not be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import write_results
from services.kit.judge.content import image_part, text_part
from services.kit.judge.templates import own_template
from services.unifiedreward import prompts
from tests.support.gateways import score_request, unifiedreward_gateway
from tests.support.tiny_qwen3vl import make_checkpoint
from tests.support.vllm_server import VllmServer, missing

LEAST_RATIO = 0.95
MODEL = "judge"
PROMPT = "a lighthouse in the rain"
SIDE = 64  # pixels
_NUMBER = r"[1-4]\.[0-9]"
EXTRA = {
    "structured_outputs": {
        "regex": rf"Alignment Score \(1-5\): {_NUMBER}\nCoherence Score \(1-5\): {_NUMBER}\nStyle Score \(1-5\): {_NUMBER}"
    }
}


def make_images(seed: int, count: int) -> list[Image.Image]:
    """Coarse noise, no two alike: neither the score cache nor vLLM's caches have seen one."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, SIDE // 8, SIDE // 8, 3), np.uint8)
    return [Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for each in noise]


async def ask_directly(url: str, images: Sequence[Image.Image], concurrency: int) -> float:
    """Seconds for one call per image."""
    text = text_part(own_template(prompts.POINTWISE).fill(PROMPT))
    bodies = [
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": [image_part(image, "jpeg"), text]}],
            "temperature": 0,
            "max_tokens": 256,
            **EXTRA,
        }
        for image in images
    ]
    slots = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=concurrency)) as client:

        async def ask(body: dict[str, Any]) -> None:
            async with slots:
                response = await client.post("/v1/chat/completions", json=body)
            assert response.raise_for_status().json()["choices"][0]["finish_reason"] == "stop", response.text

        started = time.perf_counter()
        await asyncio.gather(*map(ask, bodies))
        return time.perf_counter() - started


async def ask_gateway(url: str, images: Sequence[Image.Image], per_request: int) -> float:
    """Seconds for all images to be scored."""
    chunks = [images[start : start + per_request] for start in range(0, len(images), per_request)]
    bodies = [json.dumps(score_request(chunk, PROMPT)) for chunk in chunks]
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def ask(body: str) -> None:
            response = await client.post("/v1/score", content=body, headers={"content-type": "application/json"})
            results = response.raise_for_status().json()["results"]
            assert all(each["score"] is not None for each in results), results

        started = time.perf_counter()
        await asyncio.gather(*map(ask, bodies))
        return time.perf_counter() - started


def measure(vllm_url: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per side and round."""
    rows = []
    flags = {"family": "v2", "kinds": "pointwise", "extra_body": json.dumps(EXTRA), "max_tokens": 256}
    with unifiedreward_gateway(vllm_url, MODEL, concurrency=args.concurrency, cache_entries=0, **flags) as gateway:
        asyncio.run(ask_directly(vllm_url, make_images(0, args.concurrency), args.concurrency))
        asyncio.run(ask_gateway(gateway, make_images(1, args.concurrency), args.per_request))
        for number in range(args.rounds):
            sides = ["direct", "gateway"] if number % 2 == 0 else ["gateway", "direct"]
            for place, side in enumerate(sides):
                images = make_images(2 + 2 * number + place, args.items)
                if side == "direct":
                    seconds = asyncio.run(ask_directly(vllm_url, images, args.concurrency))
                else:
                    seconds = asyncio.run(ask_gateway(gateway, images, args.per_request))
                rows.append({"side": side, "round": number, "seconds": seconds, "per_s": args.items / seconds})
                print(f"| {side} | {number} | {seconds:.2f} | {args.items / seconds:.1f} |", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=512, help="images per side and round")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs")
    parser.add_argument("--concurrency", type=int, default=32, help="calls that vLLM sees at a time")
    parser.add_argument("--per-request", type=int, default=32, help="items of one request to the gateway")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/real_vllm_throughput.json"))
    args = parser.parse_args()
    if reason := missing():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(Path(folder, "model"))
        server = VllmServer(checkpoint, MODEL, Path(folder, "server.log"))
        server.start()
        try:
            print("| side | round | seconds | images/s |\n|---|---|---|---|")
            rows = measure(server.url, args)
        finally:
            server.kill()
    medians = {
        side: statistics.median(row["per_s"] for row in rows if row["side"] == side) for side in ("direct", "gateway")
    }
    ratio = medians["gateway"] / medians["direct"]
    print(f"\ngateway / direct: {ratio:.3f} (at least {LEAST_RATIO} is wanted)")
    write_results(args.out, "real_vllm_throughput", [*rows, {"ratio": ratio, "concurrency": args.concurrency}])
    sys.exit(ratio < LEAST_RATIO)


if __name__ == "__main__":
    main()
