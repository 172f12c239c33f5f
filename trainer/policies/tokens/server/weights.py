"""Writes a version of the weights as files, in the form that servers read."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.policies.tokens.model import TokenModel

_KEPT = 2  # versions on disk: the current one, and the one that servers may still be reading
_ADAPTER = "default"  # peft's name of the adapter that is trained


def write_weights(model: TokenModel, tensors: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """All weights as transformers saves them, under a checkpoint's own names, in a folder that is new.

    Args:
        tensors: whole, by the network's names.
    """
    network: Any = model.network
    _fill(folder, lambda part: network.save_pretrained(part, state_dict={k: v.to(dtype) for k, v in tensors.items()}))


def write_adapter(model: TokenModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """The trained adapter as PEFT saves it, in a folder that is new.

    Args:
        tensors: whole, by the network's names.
    """
    network: Any = model.network
    _fill(
        folder,
        lambda part: network.save_pretrained(part, selected_adapters=[_ADAPTER], state_dict=dict(tensors)),
    )


def _fill(folder: Path, write: Any) -> None:
    from transformers.utils import logging

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # one a step would drown the run's own
    try:
        write(part)
    finally:
        if shown:
            logging.enable_progress_bar()
    part.rename(folder)  # whole or not there


def forget_older(current: Path) -> None:
    """Delete all versions beside this one but the newest few."""
    versions = sorted(
        (each for each in current.parent.iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime
    )
    for each in versions[:-_KEPT]:
        shutil.rmtree(each, ignore_errors=True)
