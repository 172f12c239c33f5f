"""HPS scores of a random ViT-H-14 against open_clip's computation, with the cost of loading and scoring on this machine.

    python benchmarks/hps_parity.py --vocabulary bpe_simple_vocab_16e6.txt.gz [--threads 2]

Random weights in the published checkpoint's exact layout (3.9 GB in a temporary folder; 10 GB of memory) are served
from the file and compared with `benchmarks/hps_reference.py`. Exits with 1 when a score differs by more than 1e-5.
Prints a table and writes the numbers to `--out`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.hps_reference import VIT_H_14, State, random_checkpoint, score
from benchmarks.waiting_service import write_results
from services.hps.checkpoint import Checkpoint, inspect
from services.hps.scorer import HpsScorer
from services.hps.tokenizer import Tokenizer
from services.hps.vocabulary import read_merges
from services.kit.models.pixels import to_rgb
from services.kit.scorer import Item, Score

TOLERANCE = 1e-5
PROMPT = "a red cat with a hat, sitting on a window sill"


def cases() -> Iterator[tuple[str, str, Image.Image]]:
    """(name, prompt, image)."""
    rng = np.random.default_rng(0)

    def noise(width: int, height: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8))

    yield "square 512x512", PROMPT, noise(512, 512).convert("RGB")
    yield "wide 1024x256", PROMPT, noise(1024, 256).convert("RGB")
    yield "tall 224x640", PROMPT, noise(224, 640).convert("RGB")
    yield "RGBA", PROMPT, noise(300, 300)
    yield "palette", PROMPT, noise(300, 200).convert("RGB").quantize(16)
    yield "1 pixel", PROMPT, noise(1, 1).convert("RGB")
    yield "CJK prompt", "一只戴着红帽子的猫坐在窗台上", noise(224, 224).convert("RGB")
    yield "truncated prompt", PROMPT * 9, noise(640, 480).convert("RGB")


class Loaded:
    """A scorer with what loading it cost."""

    def __init__(self, checkpoint: Checkpoint, vocabulary: Path, dtype: Any, threads: int) -> None:
        before, started = psutil.Process().memory_info().rss, time.perf_counter()
        self.scorer = HpsScorer(checkpoint, vocabulary, device="cpu", dtype=dtype, threads=threads)
        self.scorer.load()
        self.seconds = time.perf_counter() - started
        self.gib = (psutil.Process().memory_info().rss - before) / 2**30

    def scores(self, items: list[Item]) -> tuple[list[float], float]:
        """The scores, one item a call, and the mean seconds."""
        started, found = time.perf_counter(), []
        for item in tqdm(items, desc="service", leave=False):
            [result] = self.scorer.score(next(iter(self.scorer.rewards)), [item])
            assert isinstance(result, Score), result
            found.append(result.value)
        return found, (time.perf_counter() - started) / len(items)


def reference_scores(state: State, items: list[Item], tokenizer: Tokenizer) -> list[float]:
    found = []
    for item in tqdm(items, desc="reference", leave=False):
        with torch.inference_mode():
            found.append(score(state, VIT_H_14, to_rgb(item.images[0]), tokenizer.encode(item.prompt).ids))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, required=True, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/hps_parity.json"), help="the numbers")
    options = parser.parse_args()

    named = list(cases())
    items = [Item(id=name, prompt=prompt, images=(image,)) for name, prompt, image in named]
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "HPS_v2.1_compressed.pt")
        torch.save({"state_dict": random_checkpoint(VIT_H_14, options.seed)}, path)
        state = torch.load(path, weights_only=True, mmap=True)["state_dict"]
        checkpoint = inspect(path)
        full = Loaded(checkpoint, options.vocabulary, "fp32", options.threads)
        ours, seconds = full.scores(items)
        half = Loaded(checkpoint, options.vocabulary, "bf16", options.threads)
        rounded, half_seconds = half.scores(items)
        theirs = reference_scores(state, items, Tokenizer(read_merges(options.vocabulary)))

    parameters = sum(weight.numel() for weight in state.values())
    print(f"{len(state)} keys, {parameters:,} parameters; {options.threads} threads")
    for name, loaded, mean in (("fp32", full, seconds), ("bf16", half, half_seconds)):
        print(f"{name}: loaded in {loaded.seconds:.1f} s, {loaded.gib:+.2f} GiB resident, {mean:.2f} s an image")
    print("\n| case | service | open_clip's way | difference | bf16 - fp32 |\n|---|---|---|---|---|")
    rows = []
    for (name, _, _), a, b, c in zip(named, ours, theirs, rounded, strict=True):
        print(f"| {name} | {a:.7f} | {b:.7f} | {a - b:+.1e} | {c - a:+.1e} |")
        rows.append({"case": name, "service": a, "reference": b, "bf16": c})
    write_results(options.out, "hps_parity", rows)
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"largest difference {worst:.1e}; the limit is {TOLERANCE:.0e}")
    raise SystemExit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
