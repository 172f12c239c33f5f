"""The aesthetic predictor: a few linear layers on the unit vector of an image, trained on people's ratings.

The published file is `sac+logos+ava1-l14-linearMSE.pth` of github.com/christophschuhmann/improved-aesthetic-predictor.
It has five linear layers without anything between them but dropout, which does nothing when it scores.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch

from services.common.sources import SourceError

LAYERS = (0, 2, 4, 6, 7)  # what lies between is dropout and has no weights
REMEDY = "the published file is sac+logos+ava1-l14-linearMSE.pth; `python -m services.clip convert` rewrites it safely"


class AestheticHead:
    """Ratings of images, mostly 1 to 10, from their unit vectors; unbounded, as the layers are linear."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self._layers = [(state[f"layers.{n}.weight"].float(), state[f"layers.{n}.bias"].float()) for n in LAYERS]

    @property
    def width(self) -> int:
        """E, how many features the first layer takes: 768, those of a ViT-L/14."""
        return self._layers[0][0].shape[1]

    @torch.inference_mode()
    def __call__(self, features_NE: torch.Tensor) -> list[float]:
        rows = features_NE
        for weight, bias in self._layers:
            rows = torch.nn.functional.linear(rows, weight, bias)
        return [float(value) for value in rows[:, 0]]


def read_head(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a published `.pth` (only tensors are unpickled) or of a converted `.safetensors` file.

    Raises:
        SourceError: the file is damaged, holds anything but tensors, or other layers.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SourceError(f"{path}: refused, it is damaged or holds more than tensors; {REMEDY}") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read ({error}); {REMEDY}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SourceError(f"{path}: holds no dictionary of tensors; {REMEDY}")
    expected = {f"layers.{n}.{part}" for n in LAYERS for part in ("weight", "bias")}
    if set(state) != expected:
        raise SourceError(
            f"{path}: has the keys {', '.join(sorted(state)[:4])}, ... instead of {', '.join(sorted(expected))}; {REMEDY}"
        )
    _check_chain(path, state)
    return state


def write_head(source: Path, out: Path) -> int:
    """Write the head as safetensors. Returns its number of parameters. Raises SourceError, also when `out` exists."""
    from safetensors.torch import save_file

    if out.exists():
        raise SourceError(f"{out} exists: remove it or name another file")
    if out.suffix != ".safetensors":
        raise SourceError(f"{out} must end in .safetensors")
    state = read_head(source)
    partial = out.with_name(f"{out.name}.partial")
    save_file({key: value.contiguous() for key, value in state.items()}, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors lets only its owner read the file
    partial.replace(out)
    return sum(value.numel() for value in state.values())


def _check_chain(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Each layer takes what the one before gives, and the last gives one number."""
    widths = [tuple(state[f"layers.{n}.weight"].shape) for n in LAYERS]
    fits = all(len(shape) == 2 for shape in widths) and all(after[1] == before[0] for before, after in pairwise(widths))
    if (
        not fits
        or widths[-1][0] != 1
        or any(state[f"layers.{n}.bias"].shape != (w[0],) for n, w in zip(LAYERS, widths, strict=True))
    ):
        raise SourceError(f"{path}: its layers of {widths} do not fit together into one number; {REMEDY}")
