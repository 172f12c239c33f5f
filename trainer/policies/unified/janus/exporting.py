"""A trained Janus as other programs read it: a folder of transformers, adapters of PEFT, a folder of DeepSeek's."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from trainer.config import JanusConfig
from trainer.policies.registry import Exporter, build_model
from trainer.policies.tokens import exporting as tokens
from trainer.policies.unified.janus.deepseek import write_folder
from trainer.policies.unified.janus.geometry import has_published_sizes
from trainer.policies.unified.janus.loading import deepseek_folder, transformers_folder
from trainer.policies.unified.janus.model import JanusModel


def _write_hf(model: JanusModel, folder: Path, dtype: torch.dtype) -> None:
    tokens.write_hf(model, folder, dtype, transformers_folder(model.config, fetch=False))


def _write_adapters(model: JanusModel, folder: Path, dtype: torch.dtype) -> None:
    """Their base is named as a folder that PEFT can load: what a model in DeepSeek's layout was converted into."""
    source = deepseek_folder(model.config)
    tokens.write_adapters(
        model, folder, dtype, None if source is None else transformers_folder(model.config, fetch=False)
    )


def _write_deepseek(model: JanusModel, folder: Path, dtype: torch.dtype) -> None:
    network: Any = model.network
    if not has_published_sizes(network.config):
        print(
            "export: DeepSeek's own code has no name for the sizes of this model's vision tower and decoder, so it cannot build "
            "it; this trainer reads them from config.json",
            file=sys.stderr,
        )
    write_folder(network, model.processor, folder, dtype, deepseek_folder(model.config))


def _reload(config: JanusConfig, folder: Path, device: torch.device) -> Any:
    """The policy that starts from the folder; one in DeepSeek's layout is converted into another that is not kept."""
    with tempfile.TemporaryDirectory() as scratch:
        changed = {"pretrained": str(folder), "converted": str(Path(scratch) / "converted"), "lora": None}
        return build_model(config.model_copy(update=changed), device)


EXPORTERS = {
    "hf": Exporter(_write_hf, _reload),
    "lora": Exporter(_write_adapters, tokens.reload_adapters, adapters=True),
    "deepseek": Exporter(_write_deepseek, _reload),
}
