"""How trained networks leave the trainer: per policy the formats it can be written in. Modules are imported when used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Exporter:
    """A format.

    Attributes:
        write: (model, folder, dtype): write what a program that reads the format needs.
        reload: (section of the policy's configuration, folder, device): the model with what was written, read as any user
            of the format reads it.
        adapters: the format holds adapters alone; all others hold whole weights, adapters merged into them.
    """

    write: Callable[[Any, Path, torch.dtype], None]
    reload: Callable[[Any, Path, torch.device], Any]
    adapters: bool = False


def _tiny() -> Exporter:
    from trainer.policies.flow import tiny_export

    return Exporter(tiny_export.write, tiny_export.reload)


def _diffusers() -> Exporter:
    from trainer.policies.flow import diffusers_export

    return Exporter(diffusers_export.write_folder, diffusers_export.reload_folder)


def _lora() -> Exporter:
    from trainer.policies.flow import diffusers_export

    return Exporter(diffusers_export.write_lora, diffusers_export.reload_lora, adapters=True)


def _deepgen() -> Exporter:
    from trainer.policies.flow.deepgen import formats

    return Exporter(formats.write, formats.reload)


def _deepgen_pt() -> Exporter:
    from trainer.policies.flow.deepgen import formats

    return Exporter(formats.write_pickled, formats.reload)


# Policy to format to what writes it.
EXPORTERS: dict[str, dict[str, Callable[[], Exporter]]] = {
    "tiny": {"safetensors": _tiny},
    "sd3": {"diffusers": _diffusers, "lora": _lora},
    "flux": {"diffusers": _diffusers, "lora": _lora},
    "qwen_image": {"diffusers": _diffusers, "lora": _lora},
    "deepgen": {"deepgen": _deepgen, "deepgen_pt": _deepgen_pt},
}
