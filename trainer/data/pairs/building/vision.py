"""Features of images by a vision model of transformers in a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from trainer.data.pairs.building.features import Features
from trainer.data.pictures import BROKEN, open_picture
from trainer.data.prompts.checks import DataError


def compute_features(folder: Path, images: Sequence[str], *, device: str, batch_size: int, title: str) -> Features:
    """One row for each image, not normalised: what the model has for a whole image.

    That is `get_image_features` of a model of images and texts (CLIP, SigLIP), else the pooled output (ResNet, ViT), else the
    mean over the last layer's positions.

    Args:
        folder: a model with its config.json, weights in safetensors and preprocessor_config.json; nothing is fetched.
        title: shown before the bar.

    Raises:
        DataError: the model cannot be loaded or gives no such features, or an image cannot be read.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DataError(f"--device {device}: there is no CUDA device here; leave the flag out to compute on the CPU")
    model, processor = _load(folder, device)
    found = []
    with tqdm(total=len(images), desc=title, unit="image", disable=None) as bar, torch.inference_mode():
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            pixels = processor(images=[_opened(path) for path in part], return_tensors="pt")["pixel_values"]
            found.append(_of_images(folder, model, pixels.to(device)).float().cpu().numpy())
            bar.update(len(part))
    return np.concatenate(found)


def _load(folder: Path, device: str) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModel

    if not (folder / "config.json").is_file():
        raise DataError(
            f"--vision-model {folder}: no config.json there; give the folder of a vision model that is on this machine"
        )
    try:
        processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            folder, local_files_only=True, backend="pil"
        )
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            f"--vision-model {folder} cannot be loaded: {error}; it needs weights in safetensors and preprocessor_config.json"
        ) from error
    return model.eval().to(device), processor


def _opened(path: str) -> Any:
    try:
        return open_picture(Path(path), None)
    except BROKEN as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}); leave its rows out") from error


def _of_images(folder: Path, model: Any, pixels: Any) -> Any:
    """(B, d)."""
    if hasattr(model, "get_image_features"):
        out = model.get_image_features(pixel_values=pixels)
        out = out if hasattr(out, "ndim") else out.pooler_output
    else:
        whole = model(pixel_values=pixels)
        out = getattr(whole, "pooler_output", None)
        out = whole.last_hidden_state.flatten(1, -2).mean(1) if out is None else out
    flat = out.flatten(1)
    if len(flat) != len(pixels):
        raise DataError(
            f"--vision-model {folder} gives {len(flat)} rows for {len(pixels)} images; give features as a file"
        )
    return flat
