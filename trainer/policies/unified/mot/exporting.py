"""A trained Mixture-of-Transformers as other programs read it: a folder in BAGEL's layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trainer.config.mot import MotConfig
from trainer.policies.registry import Exporter, build_model
from trainer.policies.unified.mot.geometry import LLM_CONFIG, VIT_CONFIG, llm_fields, read_fields, vit_fields
from trainer.policies.unified.mot.loading import AVERAGED, computed_tables
from trainer.policies.unified.mot.model import MotModel

_BESIDE = ("config.json", "generation_config.json", "preprocessor_config.json")  # which other programs look for


def write_bagel(model: MotModel, folder: Path, dtype: torch.dtype) -> None:
    """The weights under BAGEL's names, with all else that its programs need to read them."""
    network = model.network
    # Whoever exports has rounded all there is; these are computed, unrounded, wherever they are read.
    network.load_state_dict(
        {name: each.to(model.device) for name, each in computed_tables(network).items()}, strict=False
    )
    state = {name: each.to(dtype).cpu().contiguous() for name, each in network.state_dict().items()}
    save_file(state, folder / AVERAGED, metadata={"format": "pt"})
    fields = {LLM_CONFIG: llm_fields(network.geometry.language), VIT_CONFIG: vit_fields(network.geometry.vision)}
    for name, ours in fields.items():
        theirs = {} if model.base is None else read_fields(model.base / name)
        (folder / name).write_text(json.dumps({**theirs, **ours}, indent=2) + "\n", encoding="utf-8")
    beside = [] if model.base is None else [model.base / name for name in _BESIDE]
    for path in beside:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    model.codec.save(folder)
    model.words.save(folder)


def _reload(config: MotConfig, folder: Path, device: torch.device) -> Any:
    return build_model(
        config.model_copy(update={"pretrained": str(folder), "weights": None, "initialize": None}), device
    )


EXPORTERS = {"bagel": Exporter(write_bagel, _reload)}
"""By the name of the format."""
