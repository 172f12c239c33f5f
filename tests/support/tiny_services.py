"""Services that run a network, started by their own command on small random weights in the published layouts."""

from __future__ import annotations

from pathlib import Path

NAMES = ("clip", "geneval", "imagereward", "regression")
SHAPES_DETECTOR = Path(__file__).resolve().parents[1] / "services" / "geneval" / "shapes_detector"
# What an item must say beside its prompt and image to have a score.
METADATA = {"geneval": {"tag": "single_object", "include": [{"class": "circle", "count": 1}]}}


def flags_of(name: str, folder: Path) -> list[str]:
    """The weights, written into `folder`, as the flags of `python -m services.<name>`."""
    given = {"clip": _clip, "geneval": _geneval, "imagereward": _imagereward, "regression": _regression}[name](folder)
    flags = {"device": "cpu", "threads": "1", **given}
    return [f"--{flag}={value}" for flag, value in flags.items()]


def _clip(folder: Path) -> dict[str, Path]:
    from tests.support.tiny_clip import write_aesthetic, write_clip

    head = folder / "head.pth"
    write_aesthetic(head, seed=3)
    return {
        "model": write_clip(folder / "tiny-clip", seed=0),
        "pickscore": write_clip(folder / "tiny-pickscore", seed=1),
        "aesthetic": head,
    }


def _geneval(folder: Path) -> dict[str, Path]:
    from tests.support.tiny_clip import write_clip

    return {"detector": SHAPES_DETECTOR, "clip": write_clip(folder / "tiny-clip", seed=0)}


def _imagereward(folder: Path) -> dict[str, Path]:
    import torch

    from tests.support.tiny_imagereward import random_state, write_vocabulary

    weights = folder / "ImageReward.pt"
    torch.save(random_state(seed=0), weights)
    return {"weights": weights, "tokenizer": write_vocabulary(folder / "bert")}


def _regression(folder: Path) -> dict[str, Path]:
    from safetensors.torch import save_file

    from tests.support.tiny_reward_vlm import PIXELS, TEMPLATE, random_state, write_backbone

    backbone = write_backbone(folder / "tiny-qwen2-vl")
    state = {key: value.contiguous() for key, value in random_state(backbone, 0, ["rm_head"]).items()}
    save_file(state, folder / "HPSv3.safetensors")
    recipe, template = folder / "small.yaml", folder / "text.txt"
    recipe.write_text(f"name: small\npositions: sequential\npixels: {PIXELS}\n")
    template.write_text(TEMPLATE)
    return {
        "recipe": recipe,
        "backbone": backbone,
        "weights": folder / "HPSv3.safetensors",
        "templates": template,
    }
