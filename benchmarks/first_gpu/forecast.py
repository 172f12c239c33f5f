"""What the doctor says of a model that is not here: from headers of its files, as they would be."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel

from rewards.shipped import recipes
from trainer.config import Config
from trainer.doctor.weights import held_bytes, sizes, working
from trainer.migration import load_recipe

RECIPE = "sd35_medium_first"


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A file of 16-bit weights of which only the header takes room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    (path.parent / "config.json").write_text("{}", encoding="utf-8")


def write_sd3(folder: Path, geometry: Mapping[str, Any], vae: Mapping[str, Any]) -> Path:
    """A diffusers folder of SD3 without encoders and without numbers; gives it."""
    with torch.device("meta"):
        parts = {"transformer": SD3Transformer2DModel(**geometry), "vae": AutoencoderKL(**vae)}
    for name, network in parts.items():
        shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        write_header(folder / name / "diffusion_pytorch_model.safetensors", shapes)
    for name, config in (("transformer", geometry), ("vae", vae)):
        (folder / name / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    (folder / "model_index.json").write_text("{}", encoding="utf-8")
    return folder


def forecast(folder: Path, settings: Mapping[str, object]) -> dict[str, float]:
    """Bytes by what they are: what a process holds, and the largest of what a step takes beside it.

    Args:
        folder: that `write_sd3` wrote.
        settings: fields of the recipe that are others.
    """
    words = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    config = load_recipe(recipes()[RECIPE], Config, [f"policy.pretrained={folder}", *words])
    found = sizes(config)
    assert found is not None, "the headers were written just now"
    told = dict(held_bytes(config, found, 1).device)
    steps = working(config)
    if steps:
        name = max(steps, key=steps.__getitem__)
        told[name] = steps[name]
    return told
