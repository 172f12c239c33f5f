"""The flags of `python -m trainer build-pairs`, which are looked at before anything heavy is imported."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_pair_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `build-pairs`."""
    parser.add_argument(
        "--captions",
        type=Path,
        required=True,
        help="Captioned images (.jsonl, .json, .parquet): image_path and prompt; with question and answer a row can be an aligned pair.",
    )
    parser.add_argument(
        "--questions",
        type=Path,
        required=True,
        help="Questions about images: image_path, question, answer; with a caption a row can be an aligned pair.",
    )
    for kind in ("captions", "questions"):
        parser.add_argument(
            f"--{kind}-image-dir",
            type=Path,
            metavar="DIR",
            help="Its images count from here (default: the file's folder).",
        )
        parser.add_argument(
            f"--{kind}-features",
            type=Path,
            metavar="FILE",
            help="A row of numbers for each of its rows: .npy, or .safetensors with one tensor. One that is not there is written by "
            "--vision-model.",
        )
    parser.add_argument(
        "--vision-model",
        type=Path,
        metavar="DIR",
        help="Folder of a vision model of transformers (ResNet, ViT, CLIP, DINO) that computes the features.",
    )
    parser.add_argument("--device", default="cpu", help="Where the vision model computes, such as cuda (default: cpu).")
    parser.add_argument("--batch-size", type=int, default=32, help="Images that it computes at once (default: 32).")
    parser.add_argument(
        "--aligned",
        type=int,
        default=0,
        metavar="K",
        help="Clusters of k-means, each of which gives at most one aligned pair (default: 0, none).",
    )
    parser.add_argument("--threshold", type=float, default=0.6, help="Least cosine of a retrieved pair (default: 0.6).")
    parser.add_argument(
        "--neighbours",
        type=int,
        default=10,
        metavar="N",
        help="Nearest images looked at for each caption (default: 10).",
    )
    parser.add_argument(
        "--pairing",
        choices=("nearest", "random"),
        default="nearest",
        help="random: the captions and questions of the nearest pairs, dealt to each other at random, as a control.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Of k-means and of random pairs (default: 0).")
    parser.add_argument(
        "--bad-rows",
        choices=("refuse", "leave_out"),
        default="refuse",
        help="What happens to rows that cannot be used.",
    )
    parser.add_argument(
        "--to-complete",
        type=Path,
        metavar="FILE",
        help="Also write the images that would be aligned pairs if they had a caption or a question, with what each needs.",
    )
    parser.add_argument("--output", type=Path, required=True, help="The file of pairs, a new .jsonl.")
