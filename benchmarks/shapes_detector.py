"""Trains a small OWL-ViT that finds drawn circles, squares and triangles, for the tests of the GenEval service.

    python benchmarks/shapes_detector.py OUT [--steps 4000]

A folder in the layout of google/owlvit-base-patch32 with about 200,000 parameters; one that is there is trained further. The patch in which an object's centre
lies learns its class and box; all other patches learn to be nothing. Prints, at the end, how many of 500 new pictures
have exactly the right objects.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZE, PATCH, CONTEXT = 64, 8, 24
SHAPES = ("circle", "square", "triangle")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
Drawn = tuple[str, tuple[int, int, int, int]]


def draw(
    seed: int, wanted: list[str] | None = None, colors: list[str] | None = None
) -> tuple[Image.Image, list[Drawn]]:
    """A grey picture with the wanted shapes (else one to four at random), well apart, and where they are."""
    rng = random.Random(seed)
    grey = rng.randint(110, 190)
    noise = np.random.default_rng(seed).integers(-12, 13, (SIZE, SIZE, 3))
    image = Image.fromarray(np.clip(grey + noise, 0, 255).astype(np.uint8))
    pen, found = ImageDraw.Draw(image), list[Drawn]()
    names = wanted if wanted is not None else [rng.choice(SHAPES) for _ in range(rng.randint(1, 4))]
    for number, name in enumerate(names):
        for _ in range(200):
            side = rng.randint(12, 20)
            # A centre on the border of two patches would belong to either.
            x, y = (PATCH * rng.randint(1, SIZE // PATCH - 2) + rng.randint(2, 5) - side // 2 for _ in range(2))
            box = (x, y, x + side, y + side)
            inside = min(x, y) >= 0 and max(x, y) + side < SIZE
            if inside and all(
                box[0] > b[2] + 2 or b[0] > box[2] + 2 or box[1] > b[3] + 2 or b[1] > box[3] + 2 for _, b in found
            ):
                break
        else:
            continue
        color = colors[number] if colors else rng.choice(COLORS)
        draw_shape(pen, name, box, color)
        found.append((name, box))
    return image, found


def draw_shape(pen: ImageDraw.ImageDraw, name: str, box: tuple[int, int, int, int], color: str) -> None:
    """One shape that fills its box."""
    x1, y1, x2, y2 = box
    if name == "circle":
        pen.ellipse(box, fill=color)
    elif name == "square":
        pen.rectangle(box, fill=color)
    else:
        pen.polygon([(x1, y2), (x2, y2), ((x1 + x2) // 2, y1)], fill=color)


def write_untrained(out: Path) -> None:
    """Configuration, tokenizer and processor of a small OWL-ViT, and random weights."""
    from transformers import OwlViTConfig, OwlViTForObjectDetection

    from tests.support.tiny_clip import write_clip_tokenizer

    vocabulary = write_clip_tokenizer(out, CONTEXT)
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    config = OwlViTConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": PATCH,
        },
        projection_dim=32,
    )
    model = OwlViTForObjectDetection(config)
    for head in (model.box_head, model.class_head):  # begin at the patch's own place, not where the sigmoid is flat
        for parameter in head.parameters():
            parameter.data.mul_(0.02)
    model.save_pretrained(out)
    processor = {
        "image_processor_type": "OwlViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIZE, "width": SIZE},
        "resample": 3,
        "do_center_crop": False,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor))
    (out / "processor_config.json").write_text(json.dumps({"processor_class": "OwlViTProcessor"}))


def targets(drawn: list[list[Drawn]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each picture: [patches, shapes] ones at centres, [patches, 4] centre and size in shares, [patches] centres."""
    grid = SIZE // PATCH
    label = torch.zeros(len(drawn), grid * grid, len(SHAPES))
    box = torch.zeros(len(drawn), grid * grid, 4)
    for row, shapes in enumerate(drawn):
        for name, (x1, y1, x2, y2) in shapes:
            x, y = (x1 + x2 + 1) / 2, (y1 + y2 + 1) / 2
            patch = min(int(y // PATCH), grid - 1) * grid + min(int(x // PATCH), grid - 1)
            label[row, patch, SHAPES.index(name)] = 1
            box[row, patch] = torch.tensor([x, y, x2 + 1 - x1, y2 + 1 - y1]) / SIZE
    return label, box, label.amax(-1)


def train(out: Path, steps: int, batch: int) -> None:
    from tqdm import trange
    from transformers import AutoProcessor, OwlViTForObjectDetection

    torch.manual_seed(0)
    model = OwlViTForObjectDetection.from_pretrained(out, dtype=torch.float32).train()
    processor = AutoProcessor.from_pretrained(out, backend="pil")
    text = processor(text=[[f"a photo of a {name}" for name in SHAPES]], return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    bar = trange(steps)
    for step in bar:
        pictures = [draw(1_000_000 + step * batch + n) for n in range(batch)]
        pixels = processor(images=[image for image, _ in pictures], return_tensors="pt")["pixel_values"]
        ids, mask = (text[key].repeat(batch, 1) for key in ("input_ids", "attention_mask"))
        output = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
        label, box, centre = targets([drawn for _, drawn in pictures])
        weight = torch.where(label > 0, 8.0, 1.0)  # there are many more patches without a centre
        seen = functional.binary_cross_entropy_with_logits(output.logits, label, weight=weight)
        off = ((output.pred_boxes - box).abs().sum(-1) * centre).sum() / centre.sum()
        loss = seen * 10 + off * 5
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(seen=f"{float(seen):.4f}", off=f"{float(off):.3f}", refresh=False)
    model.half().save_pretrained(out)


def right(out: Path, count: int) -> int:
    """How many new pictures have exactly the drawn objects above GenEval's threshold."""
    from services.geneval.detector import load_detector
    from services.kit.models.sources import inspect_folder

    detector = load_detector(inspect_folder(out, "OUT", ("owlvit",)), torch.device("cpu"))
    good = 0
    for seed in range(count):
        image, drawn = draw(seed)
        found = detector.detect(image, SHAPES)
        numbers = [sum(each.box[4] > 0.3 for each in found[name]) for name in SHAPES]
        good += numbers == [sum(name == wanted for wanted, _ in drawn) for name in SHAPES]
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=48)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if not (arguments.out / "model.safetensors").exists():
        write_untrained(arguments.out)
    train(arguments.out, arguments.steps, arguments.batch)
    print(f"{right(arguments.out, 500)} of 500 new pictures have exactly the right objects")


if __name__ == "__main__":
    main()
