"""The two towers of a CLIP-like model of transformers on one device: unit vectors of images and of texts.

Axes: N images or texts, L tokens, E the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch.nn import functional

from machine.gpus import check_torch_uses, shown
from services.kit.models.arithmetic import Dtype


class Towers:
    """Features of a model with `get_image_features` and `get_text_features`. Not thread-safe.

    dtype: the arithmetic inside the towers; features come out in float32 and of length 1.
    """

    def __init__(self, model: Any, device: torch.device, dtype: Literal["bf16", "fp32"]) -> None:
        self.device = device
        self._model = model
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16")

    @torch.inference_mode()
    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        """[N, E] of normalised pixels [N, 3, height, width]."""
        return self._unit_length(self._model.get_image_features, pixel_values=pixels.to(self.device))

    @torch.inference_mode()
    def texts(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """[N, E] of token ids [N, L]; `mask` [N, L] is 0 at padding that must not be looked at."""
        given = {"input_ids": ids.to(self.device)}
        if mask is not None:
            given["attention_mask"] = mask.to(self.device)
        return self._unit_length(self._model.get_text_features, **given)

    def _unit_length(self, tower: Callable[..., Any], **given: torch.Tensor) -> torch.Tensor:
        with self._autocast:
            features = cast(torch.Tensor, tower(**given).pooler_output)
        return functional.normalize(features.float(), dim=-1)


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one.

    Raises ValueError for a device that torch does not have, and for `auto` where the machine shows a GPU that torch cannot
    use.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        check_torch_uses(shown(), instead="--device cpu")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}; use auto, cpu, cuda or cuda:N") from error
    return device


def choose_dtype(dtype: Dtype, device: torch.device) -> Literal["bf16", "fp32"]:
    """`auto` is bf16 on a GPU that has it, fp32 elsewhere."""
    if dtype != "auto":
        return dtype
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
