"""The weight files of a model's folder: which of them are read where it has a variant, and their plain names."""

from __future__ import annotations

import re
from pathlib import Path

_STEM = r"(?P<stem>model|diffusion_pytorch_model)"
_SHARD = r"(?P<shard>-\d+-of-\d+)?"
_PLAIN = re.compile(rf"{_STEM}(?:{_SHARD}\.safetensors|\.safetensors\.index\.json)")
# model.fp16.safetensors, its shards as they are named today and were before, and their index.
_VARIANTS = (
    re.compile(rf"{_STEM}\.(?P<variant>\w+){_SHARD}\.safetensors"),
    re.compile(rf"{_STEM}{_SHARD}\.(?P<variant>\w+)\.safetensors"),
    re.compile(rf"{_STEM}\.safetensors\.index\.(?P<variant>\w+)\.json(?P<shard>)"),
)


def variant_of(folder: Path) -> str | None:
    """The variant that a folder's weights are all in, such as `fp16` of model.fp16.safetensors.

    None where there are weights without one, which are then read, or none at all.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if any(_PLAIN.fullmatch(name) for name in names):
        return None
    found = sorted({match["variant"] for name in names if (match := _match(name)) is not None})
    return "fp16" if "fp16" in found else next(iter(found), None)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder that are read."""
    variant = variant_of(folder)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if variant is None:
        return [path for path in files if "." not in path.stem]
    return [path for path in files if (match := _match(path.name)) is not None and match["variant"] == variant]


def plain_name(path: Path) -> str | None:
    """The name of a file in a folder that is read without naming a variant; None for weights that are not read.

    Shards keep their names: their index gives them.
    """
    match = _match(path.name)
    if match is None:
        return path.name
    if match["variant"] != variant_of(path.parent):
        return None
    if path.suffix == ".json":
        return f"{match['stem']}.safetensors.index.json"
    return path.name if match["shard"] else f"{match['stem']}.safetensors"


def _match(name: str) -> re.Match[str] | None:
    """A variant's file, taken apart; a plain file is none."""
    if _PLAIN.fullmatch(name):
        return None
    return next((match for pattern in _VARIANTS if (match := pattern.fullmatch(name)) is not None), None)
