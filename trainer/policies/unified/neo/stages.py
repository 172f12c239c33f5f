"""Which part of a native model a parameter belongs to, and what each stage trains (NEO, arXiv 2510.14979, section 3.3)."""

from __future__ import annotations

from typing import Literal

from trainer.config import ConfigError
from trainer.config.neo import NeoConfig
from trainer.policies.unified.neo.geometry import NeoGeometry

NeoPart = Literal["patches", "new_layers", "rows_columns", "language"]
_LAYERS = "language_model.model.layers."
_TWINS = (".q_proj_hw.", ".k_proj_hw.", ".q_norm_h.", ".q_norm_w.", ".k_norm_h.", ".k_norm_w.")


def part_of(name: str, extra_layers: int | None) -> NeoPart:
    """The part of a parameter, by its name: `patches` (the patch embedding), `new_layers` (the pre-buffer), `rows_columns` (queries and
    keys of rows and columns, with their norms, in the language model's own layers), `language` (all else).

    Args:
        extra_layers: how many layers are new; None takes none for new.
    """
    if name.startswith("vision_model."):
        return "patches"
    if name.startswith(_LAYERS) and int(name.removeprefix(_LAYERS).split(".")[0]) < (extra_layers or 0):
        return "new_layers"
    return "rows_columns" if any(twin in name for twin in _TWINS) else "language"


def is_trained(name: str, config: NeoConfig, geometry: NeoGeometry) -> bool:
    """Whether a parameter is trained: all are, or in stage 1 those that the language model did not have."""
    return config.train == "all" or part_of(name, geometry.extra_layers) != "language"


def check_stage(config: NeoConfig, geometry: NeoGeometry) -> None:
    """Raises ConfigError where stage 1 is asked for and nobody has said which layers are new, or more than there are."""
    extra = geometry.extra_layers
    if config.train == "stage_1" and extra is None:
        raise ConfigError(
            f"policy.train = stage_1 trains the new layers of {config.pretrained}, but its config.json has no extra_num_layers: say how "
            "many they are in policy.extra_layers (NEO's 2B has 12, its 9B 6)"
        )
    if extra is not None and extra > geometry.num_layers:
        raise ConfigError(
            f"policy.extra_layers = {extra}, but the model has {geometry.num_layers} layers in all; lower it"
        )
