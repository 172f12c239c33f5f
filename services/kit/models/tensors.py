"""Files of tensors as they are published: read without running anything in them, rewritten as safetensors."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from services.kit.models.sources import SourceError


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pt` or `.pth` (only tensors and plain containers are unpickled) or `.safetensors` file.

    A state dict under the key `state_dict` or `model` is taken out of it.

    Raises:
        SourceError: the file is damaged, is not complete, or holds anything but tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files older than the zip format cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise SourceError(f"{path}: refused, it is damaged or holds more than tensors; download it again") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError) as error:
        raise SourceError(f"{path}: cannot be read, is it complete? ({error}); download it again") from error
    state = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SourceError(f"{path}: holds no dictionary of tensors")
    return {str(key): value for key, value in state.items()}


def write_tensors(state: Mapping[str, torch.Tensor], out: Path) -> int:
    """Write a new safetensors file. Returns its number of parameters. Raises SourceError, also when `out` exists."""
    from safetensors.torch import save_file

    if out.exists():
        raise SourceError(f"{out} exists: remove it or name another file")
    if out.suffix != ".safetensors":
        raise SourceError(f"{out} must end in .safetensors")
    partial = out.with_name(f"{out.name}.partial")
    save_file({key: value.contiguous() for key, value in state.items()}, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors lets only its owner read the file
    partial.replace(out)
    return sum(value.numel() for value in state.values())
