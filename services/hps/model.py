"""The two towers of an HPS checkpoint on one device. Axes: M texts, N images, E the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from PIL import Image

from services.hps.architecture import check_shapes
from services.hps.checkpoint import WEIGHTS_NAME, Checkpoint, CheckpointError
from services.hps.convert import State, read_published, shapes_of, to_clip_state
from services.hps.preprocess import preprocess
from services.kit.models.towers import Towers

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel


class HpsModel:
    """Cosines of images and texts. Not thread-safe."""

    def __init__(self, clip: CLIPModel, device: torch.device, dtype: Literal["bf16", "fp32"]) -> None:
        self._towers = Towers(clip, device, dtype)
        self._image_size = cast(int, clip.vision_model.embeddings.image_size)  # CLIPModel takes square images only

    @torch.inference_mode()
    def cosines(
        self, texts: Sequence[Sequence[int]], pairs: Sequence[tuple[int, Image.Image]], batch: int
    ) -> list[float]:
        """The cosine of each (row of `texts`, image), `batch` images at a time. `texts` are rows of token ids."""
        if not pairs:
            return []
        texts_ME = self._towers.texts(torch.tensor(texts))
        found: list[float] = []
        for start in range(0, len(pairs), batch):
            rows, images = zip(*pairs[start : start + batch], strict=True)
            pixels = torch.stack([preprocess(image, self._image_size, self._towers.device) for image in images])
            images_NE = self._towers.images(pixels)
            found += (images_NE * texts_ME[list(rows)]).sum(-1).tolist()
        return found


def load_model(
    checkpoint: Checkpoint, vocab_size: int, device: torch.device, dtype: Literal["bf16", "fp32"]
) -> HpsModel:
    """Read the weights and put them on `device`; on the CPU in their own dtype they stay in the mapped file.

    Raises CheckpointError when they are damaged, do not fit together or need a vocabulary of another size.
    """
    config, state = _read_folder(checkpoint.path) if checkpoint.converted else _read_file(checkpoint.path)
    clip = build(config, state, device, torch.bfloat16 if dtype == "bf16" else torch.float32)
    found = clip.text_model.embeddings.token_embedding.num_embeddings
    if found != vocab_size:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: has {found} token embeddings, the vocabulary {vocab_size}"
        )
    return HpsModel(clip.train(False).requires_grad_(False), device, dtype)


def _read_file(path: Path) -> tuple[CLIPConfig, State]:
    from transformers import CLIPConfig

    architecture, state = to_clip_state(read_published(path))
    return CLIPConfig(**architecture.config()), state


def _read_folder(path: Path) -> tuple[CLIPConfig, State]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import CLIPConfig

    try:
        return CLIPConfig.from_pretrained(path, local_files_only=True), load_file(path / WEIGHTS_NAME)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error}); convert it again") from error


def build(config: CLIPConfig, state: State, device: torch.device, dtype: torch.dtype) -> CLIPModel:
    """The network with these weights on `device`. Raises CheckpointError where shapes differ."""
    from transformers import CLIPModel

    with torch.device("meta"):
        clip = CLIPModel(config)
    check_shapes(shapes_of(state), shapes_of(clip.state_dict()))
    clip.load_state_dict({key: value.to(device, dtype) for key, value in state.items()}, assign=True)
    for embeddings in (clip.text_model.embeddings, clip.vision_model.embeddings):  # not part of a state dict
        embeddings.position_ids = torch.arange(embeddings.position_embedding.num_embeddings, device=device)[None]
    return clip
