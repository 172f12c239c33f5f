"""How large a native model is, from its config.json alone."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.config.neo import NeoConfig
from trainer.policies.registry import Sizes
from trainer.policies.tokens.hub import local_folder
from trainer.policies.unified.neo.files import growing, read_geometry
from trainer.policies.unified.neo.geometry import NeoGeometry
from trainer.policies.unified.neo.network import NeoNetwork
from trainer.policies.unified.neo.stages import is_trained

_FP32 = 4


def sizes(config: NeoConfig) -> Sizes:
    """The sizes of the model that the section names. Nothing is fetched from the hub. Raises ConfigError where it cannot be read."""
    geometry = geometry_of(config)
    trained = frozen = 0
    for name, shape in shapes(geometry).items():
        if is_trained(name, config, geometry):
            trained += shape.numel()
        else:
            frozen += shape.numel()
    return Sizes(trained, _FP32 * frozen, others=0)


def shapes(geometry: NeoGeometry) -> dict[str, torch.Size]:
    """The shape of every tensor by its name: what a folder in NEO's layout holds."""
    with torch.device("meta"):
        network = NeoNetwork(geometry, image_id=0, end_id=0)
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def geometry_of(config: NeoConfig) -> NeoGeometry:
    """The sizes of the network that the section names, from JSON files alone. Raises ConfigError."""
    if config.grow is not None:
        return growing(config.grow)[0]
    assert config.pretrained is not None, "the configuration has checked it"
    folder: Path = local_folder(config.pretrained, "policy.pretrained", fetch=False)
    return read_geometry(config, folder)
