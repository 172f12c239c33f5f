"""Milliseconds an image of the rewards with a network, on this machine's CPU, and how often each image is encoded.

    python benchmarks/image_rewards.py [--images 16] [--threads 2]

Random weights of full size (CLIP ViT-L/14 with the aesthetic head, PickScore's ViT-H/14, ImageReward's BLIP-L) are written into
a temporary folder (7.5 GB; 8 GB of memory) and scored as the services do, without HTTP. Every row has images of its own, so
that nothing is remembered from the row before. HPSv2 is PickScore's network, and costs the same. Exits with 1 when the rewards
of one row encode an image more than once. Prints a table and writes the numbers to `--out`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import write_results
from services.clip.scorer import ClipScorer
from services.imagereward.scorer import ImageRewardScorer
from services.kit.models.sources import inspect_file, inspect_folder
from services.kit.scorer import Item, Score, Scorer
from tests.support.tiny_clip import END, START, write_aesthetic, write_clip_tokenizer, write_processor
from tests.support.tiny_imagereward import PUBLISHED, random_state, write_vocabulary

# Width, layers and heads; the MLPs are four times as wide.
VIT_L_14: dict[str, Any] = {"vision": (1024, 24, 16), "text": (768, 12, 12), "projection": 768}
VIT_H_14: dict[str, Any] = {"vision": (1280, 32, 16), "text": (1024, 24, 16), "projection": 1024}
WORDS, CONTEXT, SIDE, PATCH = 49_408, 77, 224, 14
HEAD = (1024, 128, 64, 16)
PROMPT = "a red cat"
CASES = (
    ("clip", ("clip_sim",)),
    ("clip", ("aesthetic",)),
    ("clip", ("clip_sim", "aesthetic", "diversity")),
    ("clip", ("pickscore",)),
    ("clip", ("pickscore", "pickscore_26", "pickscore_cosine")),
    ("imagereward", ("imagereward",)),
)


def write_full_clip(folder: Path, size: dict[str, Any]) -> Path:
    """A CLIPModel of published size, random, with a vocabulary of letters."""
    from transformers import CLIPConfig, CLIPModel

    vocabulary = write_clip_tokenizer(folder, CONTEXT)

    def tower(width: int, layers: int, heads: int) -> dict[str, int]:
        return {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
        }

    ends = {"bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END]}
    text = tower(*size["text"]) | {"vocab_size": WORDS, "max_position_embeddings": CONTEXT} | ends
    vision = tower(*size["vision"]) | {"image_size": SIDE, "patch_size": PATCH}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=size["projection"])
    CLIPModel(config).save_pretrained(folder)
    write_processor(folder, SIDE)
    return folder


def pictures(count: int, seed: int) -> list[Item]:
    """Noise of 512 x 512, as one group."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 512, 512, 3), np.uint8)
    return [Item(str(number), PROMPT, (Image.fromarray(each),), group_id="g") for number, each in enumerate(pixels)]


def encoded(scorer: Scorer) -> int | None:
    """Images that went through a backbone so far; None where nothing counts them."""
    if not isinstance(scorer, ClipScorer):
        return None
    return sum(backbone.image_cache.misses for backbone in scorer.backbones.values())


def measure(scorer: Scorer, rewards: Sequence[str], items: list[Item]) -> dict[str, Any]:
    before, started = encoded(scorer), time.perf_counter()
    for reward in rewards:
        for result in scorer.score(reward, items):
            assert isinstance(result, Score), result
    ms = 1000 * (time.perf_counter() - started) / len(items)
    after = encoded(scorer)
    times = None if before is None or after is None else (after - before) / len(items)
    return {"rewards": list(rewards), "ms_an_image": ms, "encoded_times": times}


def loaded(name: str, folder: Path, threads: int) -> Scorer:
    """The scorer with its weights; they are written first."""
    if name == "clip":
        write_aesthetic(folder / "head.pth", 0, VIT_L_14["projection"], HEAD)
        model, pickscore = (
            inspect_folder(write_full_clip(folder / kind, size), f"--{kind}")
            for kind, size in (("model", VIT_L_14), ("pickscore", VIT_H_14))
        )
        head = inspect_file(folder / "head.pth", "--aesthetic")
        scorer: Scorer = ClipScorer(model, pickscore, head, device="cpu", dtype="fp32", threads=threads)
    else:
        weights = folder / "ImageReward.pt"
        torch.save(random_state(0, PUBLISHED), weights)
        words = write_vocabulary(folder / "bert")
        scorer = ImageRewardScorer(
            inspect_file(weights, "--weights"), words, device="cpu", dtype="fp32", threads=threads
        )
    scorer.load()
    return scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="of a row, 2 or more; 512 x 512")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/image_rewards.json"), help="the numbers")
    options = parser.parse_args()

    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(service for service, _ in CASES):
        with tempfile.TemporaryDirectory() as folder:
            scorer = loaded(name, Path(folder), options.threads)
            for reward, item in scorer.warmup():
                scorer.score(reward, [item])
            chosen = [rewards for service, rewards in CASES if service == name]
            for rewards in tqdm(chosen, desc=name, leave=False):
                rows.append(measure(scorer, rewards, pictures(options.images, len(rows))))
            scorer.close()
    print(f"{options.images} images of 512x512 a row, {options.threads} threads, fp32\n")
    print("| rewards asked for the same images | ms an image | encoded |\n|---|---|---|")
    for row in rows:
        times = "-" if row["encoded_times"] is None else f"{row['encoded_times']:.2f} times"
        print(f"| {', '.join(row['rewards'])} | {row['ms_an_image']:.0f} | {times} |")
    write_results(options.out, "image_rewards", rows)
    raise SystemExit(any(row["encoded_times"] not in (None, 1.0) for row in rows))


if __name__ == "__main__":
    main()
