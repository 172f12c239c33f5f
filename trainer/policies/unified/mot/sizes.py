"""How large a Mixture-of-Transformers is, from the headers of its files: nothing of their data is read."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from trainer.config.mot import MotConfig
from trainer.policies.lora import compute_dtype
from trainer.policies.registry import Sizes
from trainer.policies.sizes import Shapes, count, shapes_in
from trainer.policies.unified.mot.flux_vae import FLUX_FILE
from trainer.policies.unified.mot.geometry import fresh_geometry
from trainer.policies.unified.mot.loading import weights_file
from trainer.policies.unified.mot.network import MotNetwork
from trainer.policies.unified.mot.parts import part_of
from trainer.policies.unified.mot.words import Words

_FP32 = 4


def sizes(config: MotConfig) -> Sizes:
    """The sizes of the model that the section names.

    Raises:
        OSError, SafetensorError: a file cannot be read.
        ConfigError: there are no weights.
    """
    shapes = _shapes(config)
    positions = count({name: shape for name, shape in shapes.items() if part_of(name) is None})
    trained = count({name: shape for name, shape in shapes.items() if part_of(name) not in (None, *config.freeze)})
    frozen = count(shapes) - trained - positions
    bytes_each = compute_dtype(config).itemsize
    return Sizes(trained, bytes_each * frozen, bytes_each * _codec(config), _FP32 * positions)


def _shapes(config: MotConfig) -> Shapes:
    """Of the network's parameters, by name."""
    if config.initialize is None:
        return shapes_in(weights_file(config))
    geometry = fresh_geometry(config.initialize, len(Words.fresh(config.initialize.words)), config.max_latent_size)
    with torch.device("meta"):
        return {name: tuple(each.shape) for name, each in MotNetwork(geometry).named_parameters()}


def _codec(config: MotConfig) -> int:
    """Elements of FLUX's autoencoder; a small model's codec is not worth counting."""
    path = None if config.pretrained is None else Path(config.pretrained) / FLUX_FILE
    return 0 if path is None or not path.is_file() else sum(math.prod(shape) for shape in shapes_in(path).values())
