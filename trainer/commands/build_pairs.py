"""`build-pairs`: captioned images and questions about images, paired by their features."""

from __future__ import annotations

import argparse

from trainer.data.pairs.building.flags import add_pair_flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_pair_flags(parser)


def run(args: argparse.Namespace) -> int:
    from trainer.data.pairs.building.command import build_pairs

    print(build_pairs(args))
    return 0
