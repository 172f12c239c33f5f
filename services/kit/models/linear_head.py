"""A head of five linear layers on a feature vector, as the aesthetic predictor and ImageReward have.

Between the layers there is nothing but dropout, which does nothing when it scores, so the numbers of the layers have gaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch

from services.kit.models.sources import SourceError

LAYERS = (0, 2, 4, 6, 7)  # what lies between is dropout and has no weights


class LinearHead:
    """One number for each row of features; unbounded, as the layers are linear.

    state: `layers.N.weight` [out, in] and `layers.N.bias` [out] for N in LAYERS.
    Raises SourceError, naming `where` they came from, when there are others or they do not fit together.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], where: Path) -> None:
        check_head(state, where)
        self._layers = [(state[f"layers.{n}.weight"].float(), state[f"layers.{n}.bias"].float()) for n in LAYERS]

    @property
    def width(self) -> int:
        """E, how many features the first layer takes."""
        return self._layers[0][0].shape[1]

    @torch.inference_mode()
    def __call__(self, features_NE: torch.Tensor) -> list[float]:
        rows = features_NE
        for weight, bias in self._layers:
            rows = torch.nn.functional.linear(rows, weight, bias)
        return [float(value) for value in rows[:, 0]]


def check_head(state: Mapping[str, torch.Tensor], where: Path) -> None:
    """Raises SourceError when these are not five linear layers that end in one number."""
    expected = {f"layers.{n}.{part}" for n in LAYERS for part in ("weight", "bias")}
    if set(state) != expected:
        some = ", ".join(sorted(state)[:4]) or "none"
        raise SourceError(f"{where}: has the keys {some}, ... instead of {', '.join(sorted(expected))}")
    shapes = [tuple(state[f"layers.{n}.weight"].shape) for n in LAYERS]
    fits = all(len(shape) == 2 for shape in shapes) and all(after[1] == before[0] for before, after in pairwise(shapes))
    biases = [tuple(state[f"layers.{n}.bias"].shape) for n in LAYERS]
    if not fits or shapes[-1][0] != 1 or biases != [shape[:1] for shape in shapes]:
        raise SourceError(f"{where}: its layers of {shapes} do not fit together into one number")
