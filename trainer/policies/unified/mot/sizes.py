"""How large a Mixture-of-Transformers is: its network on the meta device, which allocates nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.config.mot import MotConfig
from trainer.policies.registry import Sizes
from trainer.policies.unified.mot.geometry import fresh_geometry, read_geometry
from trainer.policies.unified.mot.loading import load_codec
from trainer.policies.unified.mot.model import part_of
from trainer.policies.unified.mot.network import MotNetwork
from trainer.policies.unified.mot.words import Words

_FP32 = 4


def sizes(config: MotConfig) -> Sizes:
    """The sizes of the model that the section names. Raises ConfigError where its files cannot be read."""
    if config.initialize is not None:
        geometry = fresh_geometry(config.initialize, len(Words.fresh(config.initialize.words)), config.max_latent_size)
    else:
        assert config.pretrained is not None, "the configuration has checked it"
        codec = load_codec(Path(config.pretrained), torch.device("cpu"))
        geometry = read_geometry(
            Path(config.pretrained), codec.channels * codec.latent_patch**2, config.max_latent_size
        )
    with torch.device("meta"):
        network = MotNetwork(geometry)
    counted = {name: each.numel() for name, each in network.named_parameters()}
    trained = sum(number for name, number in counted.items() if part_of(name) not in (None, *config.freeze))
    positions = sum(number for name, number in counted.items() if part_of(name) is None)
    frozen = sum(counted.values()) - trained - positions
    return Sizes(trained, _FP32 * frozen, 0, _FP32 * positions)
