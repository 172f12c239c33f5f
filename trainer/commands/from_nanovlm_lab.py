"""`from-nanovlm-lab`: a YAML of NanoVLM-Lab as a recipe of ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.migration.nanovlm_lab.command import from_nanovlm_lab


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="Its YAML; `train` takes it as it is, too.")
    parser.add_argument("--gpus", type=int, help="Processes in all (default: as WORLD_SIZE, or NNODES and NGPUS say).")


def run(args: argparse.Namespace) -> int:
    print(from_nanovlm_lab(args.config, args.gpus), end="")
    return 0
