"""Milliseconds an image of the rewards that this machine's CPU can compute, and how often each image is encoded.

    python benchmarks/image_rewards.py --images 16 --threads 2
    python benchmarks/image_rewards.py --images 16 --threads 2 --page docs/rewards.md   # fills in the column of costs

Random weights of published size (CLIP ViT-L/14 with the aesthetic head, PickScore's ViT-H/14, ImageReward's BLIP-L, a Mask2Former
with Swin-S) are written into a temporary folder (4 GB; 6 GB of memory), and score images of 512 x 512 with a drawn word as the
services do, without HTTP. Every row has images of its own, so that nothing is remembered from the row before; slow rows and those
that only repeat another's work have a quarter of the images. HPSv2 is PickScore's network, and costs the same. Exits with 1 when
the rewards of one row encode an image more than once. Prints a table and writes the numbers to `--out`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.waiting_service import write_results
from services.clip.scorer import ClipScorer
from services.geneval.scorer import GenevalScorer
from services.imagereward.scorer import ImageRewardScorer
from services.kit.models.sources import inspect_file, inspect_folder
from services.kit.scorer import Item, Score, Scorer
from services.ocr.scorer import OcrScorer
from services.rules.scorer import RulesScorer
from tests.support.tiny_clip import END, START, write_aesthetic, write_clip_tokenizer, write_processor
from tests.support.tiny_imagereward import PUBLISHED, random_state, write_vocabulary

# Width, layers and heads; the MLPs are four times as wide.
VIT_L_14: dict[str, Any] = {"vision": (1024, 24, 16), "text": (768, 12, 12), "projection": 768}
VIT_H_14: dict[str, Any] = {"vision": (1280, 32, 16), "text": (1024, 24, 16), "projection": 1024}
WORDS, CONTEXT, SIDE, PATCH, CLASSES = 49_408, 77, 224, 14, 80
HEAD = (1024, 128, 64, 16)
PROMPT, CAPTION_BEFORE = 'the word "CAT" in red', "an empty wall"
METADATA = {"source_prompt": CAPTION_BEFORE, "tag": "single_object", "include": [{"class": "LABEL_0", "count": 1}]}


@dataclass(frozen=True)
class Case:
    """Rewards that are asked for the same images, and what share of `--images` they are asked for."""

    service: str
    rewards: tuple[str, ...]
    share: float = 0.25


CASES = (
    Case("clip", ("clip_sim",), 1),
    Case("clip", ("clip_sim", "aesthetic", "diversity"), 1),
    Case("clip", ("aesthetic",)),
    Case("clip", ("image_similarity",)),
    Case("clip", ("clip_direction",)),
    Case("clip", ("diversity",)),
    Case("clip", ("pickscore",), 0.5),
    Case("clip", ("pickscore", "pickscore_26", "pickscore_cosine"), 0.5),
    Case("imagereward", ("imagereward",), 0.5),
    Case("geneval", ("geneval",)),
    Case("ocr", ("flow_grpo",), 1),
    Case("rules", ("color_match",), 1),
    Case("rules", ("jpeg_compressibility",), 1),
)
# Rows of docs/rewards.md by the first reward in them, whose cost is another row's.
SAME = {"pickscore_26": "pickscore", "pickscore_cosine": "pickscore", "multi": "flow_grpo"}


def fill(model_class: Any, config: Any, folder: Path) -> None:
    """A model of published size with random weights, in bfloat16; one block of numbers over and over, which is fast."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        model = model_class(config)
    state = {}
    for name, weight in model.named_parameters():
        count = weight.numel()
        values = block.repeat(-(-count // len(block)))[:count].reshape(weight.shape)
        scaled = values * weight[0].numel() ** -0.5 if weight.ndim > 1 else values * 0.02 + float("norm" in name)
        state[name] = scaled.to(torch.bfloat16)
    model.to(torch.bfloat16).save_pretrained(folder, state_dict=state)


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
    fill(CLIPModel, CLIPConfig(text_config=text, vision_config=vision, projection_dim=size["projection"]), folder)
    write_processor(folder, SIDE)
    return folder


def write_full_mask2former(folder: Path) -> Path:
    """With Swin-S and COCO's number of classes, as facebook/mask2former-swin-small-coco-instance; 800 pixels short side."""
    from transformers import Mask2FormerConfig

    from services.geneval.segmenter import Segmenter

    fill(Segmenter, Mask2FormerConfig(num_labels=CLASSES), folder)
    size = {"shortest_edge": 800, "longest_edge": 1333}
    processor = {"image_processor_type": "Mask2FormerImageProcessor", "size": size, "size_divisor": 32, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def pictures(count: int, seed: int) -> list[Item]:
    """A word in red on light noise, 512 x 512, as one group; each with the picture it was made from."""
    font, items = ImageFont.load_default(120), []
    for number in range(count):
        noise = np.random.default_rng(1000 * seed + number).integers(200, 216, (512, 512, 3), np.uint8)
        source = Image.fromarray(noise)
        image = source.copy()
        ImageDraw.Draw(image).text((256, 256), "CAT", "red", font, anchor="mm")
        items.append(Item(str(number), PROMPT, (image,), group_id="g", source_images=(source,), metadata=METADATA))
    return items


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
    after, pairs = encoded(scorer), {"image_similarity", "clip_direction"} & set(rewards)
    each = len(items) * (2 if pairs else 1)  # an edit has its source beside it
    times = None if before is None or after is None else (after - before) / each
    return {"rewards": list(rewards), "images": len(items), "ms_an_image": ms, "encoded_times": times}


def clip(folder: Path, threads: int) -> Scorer:
    write_aesthetic(folder / "head.pth", 0, VIT_L_14["projection"], HEAD)
    model, pickscore = (
        inspect_folder(write_full_clip(folder / kind, size), f"--{kind}")
        for kind, size in (("model", VIT_L_14), ("pickscore", VIT_H_14))
    )
    head = inspect_file(folder / "head.pth", "--aesthetic")
    return ClipScorer(model, pickscore, head, device="cpu", dtype="fp32", threads=threads)


def imagereward(folder: Path, threads: int) -> Scorer:
    weights = folder / "ImageReward.pt"
    torch.save(random_state(0, PUBLISHED), weights)
    source, words = inspect_file(weights, "--weights"), write_vocabulary(folder / "bert")
    return ImageRewardScorer(source, words, device="cpu", dtype="fp32", threads=threads)


def geneval(folder: Path, threads: int) -> Scorer:
    source = inspect_folder(write_full_mask2former(folder / "mask2former"), "--detector", ("mask2former",))
    return GenevalScorer(source, device="cpu", dtype="fp32", threads=threads)


SCORERS: Mapping[str, Callable[[Path, int], Scorer]] = {
    "clip": clip,
    "imagereward": imagereward,
    "geneval": geneval,
    "ocr": lambda _folder, _threads: OcrScorer(),
    "rules": lambda _folder, _threads: RulesScorer(),
}


def fill_page(page: str, costs: Mapping[str, str]) -> str:
    """docs/rewards.md with the cost, its table's last cell, of every row whose first reward has one."""
    lines = page.splitlines(keepends=True)
    for number, line in enumerate(lines):
        cells = line.split("|")
        named = re.fullmatch(r" `\w+`: `(\w+)`.*", cells[1]) if len(cells) == 6 else None
        if named and (cost := costs.get(SAME.get(named[1], named[1]))):
            lines[number] = "|".join([*cells[:4], f" {cost} ", cells[5]])
    return "".join(lines)


def shown(ms: float) -> str:
    """Three figures at most: more would promise what a repetition does not keep."""
    return f"{ms:.1f}" if ms < 10 else f"{float(f'{ms:.3g}'):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="of a row, 8 or more; 512 x 512")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/image_rewards.json"), help="the numbers")
    parser.add_argument("--page", type=Path, help="docs/rewards.md, whose column of costs is filled in")
    options = parser.parse_args()

    from transformers.utils import logging

    logging.disable_progress_bar()
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(case.service for case in CASES):
        with tempfile.TemporaryDirectory() as folder:
            scorer = SCORERS[name](Path(folder), options.threads)
            scorer.load()
            for reward, item in scorer.warmup():
                scorer.score(reward, [item])
            for case in tqdm([each for each in CASES if each.service == name], desc=name, leave=False):
                count = max(2, round(options.images * case.share))
                rows.append(measure(scorer, case.rewards, pictures(count, len(rows))))
            scorer.close()
    print(f"512x512, {options.threads} threads, fp32\n")
    print("| rewards asked for the same images | images | ms an image | encoded |\n|---|---|---|---|")
    for row in rows:
        times = "-" if row["encoded_times"] is None else f"{row['encoded_times']:.2f} times"
        print(f"| {', '.join(row['rewards'])} | {row['images']} | {shown(row['ms_an_image'])} | {times} |")
    write_results(options.out, "image_rewards", rows)
    if options.page is not None:
        costs = {row["rewards"][0]: shown(row["ms_an_image"]) for row in reversed(rows) if len(row["rewards"]) == 1}
        options.page.write_text(fill_page(options.page.read_text("utf-8"), costs), "utf-8")
        print(f"filled in: {options.page}")
    raise SystemExit(any(row["encoded_times"] not in (None, 1.0) for row in rows))


if __name__ == "__main__":
    main()
