"""What scoring costs the trainer's own thread, per image, and the CPU that the client's background thread takes.

    python benchmarks/client_overhead.py
    python benchmarks/client_overhead.py --sizes 512 --rewards 3 --micro-batches 20

`submit` is the call of the training loop; encoding and HTTP come after it, on the client's own thread. `submit ms` is
the wall time of that call per image, `thread CPU ms` the CPU time that the calling thread spent in it, `background CPU
ms` what the rest of the process used per image and reward until the answers were in. Exits with 1 when the median of
`submit ms` is 1 or more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import rewards_tree, waiting_service, write_results
from trainer.config import RewardsConfig
from trainer.rewards import RewardClient
from trainer.types import Prompt, Sample

LIMIT_MS = 1.0


def make_samples(count: int, size: int, weights: dict[str, float], tag: str) -> list[Sample]:
    """Noise: the pixels of no two images are alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    prompt = Prompt("p", 'the word "HELLO" in red', weights=weights, targets=("HELLO",), metadata={"color": "red"})
    return [Sample(f"{tag}-{i}", f"g{i // 4}", prompt, (image,)) for i, image in enumerate(pixels)]


def measure(url: str, size: int, rewards: int, encoding: str, micro_batch: int, micro_batches: int) -> dict[str, Any]:
    """One row of the table."""
    names = [f"r{i}" for i in range(rewards)]
    tree = rewards_tree(dict.fromkeys(names, url), image_encoding=encoding)
    submit_ms, cpu_ms, background_ms = [], [], []
    with RewardClient(RewardsConfig.model_validate(tree), urls={name: [url] for name in names}) as client:
        for step in range(3):
            batch = client.batch()
            process_before, thread_before = time.process_time(), time.thread_time()
            for i in range(micro_batches):
                samples = make_samples(micro_batch, size, dict.fromkeys(names, 1.0), f"{step}-{i}")
                process_before += time.thread_time() - thread_before  # making the pictures is not the client's work
                wall, cpu = time.perf_counter(), time.thread_time()
                batch.submit(samples)
                if step:  # the first step opens connections and imports what is imported late
                    submit_ms.append(1000 * (time.perf_counter() - wall) / micro_batch)
                    cpu_ms.append(1000 * (time.thread_time() - cpu) / micro_batch)
                thread_before = time.thread_time()
            scores = batch.collect()
            if not bool(scores.valid_BR.all()):
                raise SystemExit(f"scores failed: {scores.failures}")
            if step:
                main_s = time.thread_time() - thread_before
                used_s = time.process_time() - process_before - main_s
                background_ms.append(1000 * used_s / (micro_batch * micro_batches * rewards))
    return {
        "size": size,
        "rewards": rewards,
        "encoding": encoding,
        "submit_ms_median": statistics.median(submit_ms),
        "submit_ms_max": max(submit_ms),
        "thread_cpu_ms": statistics.median(cpu_ms),
        "background_cpu_ms": statistics.median(background_ms),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 512, 1024], help="Width and height of the images.")
    parser.add_argument("--rewards", type=int, nargs="+", default=[1, 3], help="How many rewards score each image.")
    parser.add_argument("--encodings", nargs="+", default=["rgb8"], choices=["rgb8", "png", "webp", "jpeg"])
    parser.add_argument("--micro-batch", type=int, default=16, help="Images per submit.")
    parser.add_argument("--micro-batches", type=int, default=6, help="Submits per step; two steps are measured.")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/client_overhead.json"))
    args = parser.parse_args()
    print("| size | rewards | encoding | submit ms/image, median | max | thread CPU ms | background CPU ms |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    with waiting_service(latency_ms=0) as url:
        for size in args.sizes:
            for rewards in args.rewards:
                for encoding in args.encodings:
                    row = measure(url, size, rewards, encoding, args.micro_batch, args.micro_batches)
                    rows.append(row)
                    print(
                        f"| {size} | {rewards} | {encoding} | {row['submit_ms_median']:.4f} | {row['submit_ms_max']:.4f} "
                        f"| {row['thread_cpu_ms']:.4f} | {row['background_cpu_ms']:.3f} |",
                        flush=True,
                    )
    write_results(args.out, "client_overhead", rows)
    return int(any(row["submit_ms_median"] >= LIMIT_MS for row in rows))


if __name__ == "__main__":
    sys.exit(main())
