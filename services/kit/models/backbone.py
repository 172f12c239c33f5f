"""A CLIP or SigLIP folder of transformers, loaded once: unit vectors of images and prompts, remembered.

Axes: N images or prompts, E the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from PIL import Image
from safetensors import SafetensorError

from services.kit.models.features import FeatureCache, image_key
from services.kit.models.pixels import to_rgb
from services.kit.models.sources import Source, SourceError
from services.kit.models.towers import Towers

# A CLIP scales the short side to its size and cuts out the middle. Of an image longer than this many times its short
# side only the middle is scaled, since all of it, scaled up, could fill the memory and would be cut off again.
_LONGEST = 8


@dataclass(frozen=True)
class Prompts:
    """features_NE: unit vectors. truncated: for each prompt how many of its tokens the model did not see."""

    features_NE: torch.Tensor
    truncated: tuple[int, ...]


class Backbone:
    """One copy of a model's weights. Not thread-safe.

    batch: images (or prompts) of one forward pass.
    entries: features kept in memory of each kind.
    """

    def __init__(
        self, source: Source, device: torch.device, dtype: Literal["bf16", "fp32"], *, batch: int, entries: int
    ) -> None:
        model, self._tokenizer, self._processor = _load(source, torch.bfloat16 if dtype == "bf16" else torch.float32)
        self.kind = source.kind
        self.scale = float(model.logit_scale.detach().float().exp())
        self._length = int(model.config.text_config.max_position_embeddings)
        self._towers = Towers(model.to(device).train(False).requires_grad_(False), device, dtype)
        self._batch = batch
        self.image_cache, self.text_cache = FeatureCache(entries), FeatureCache(entries)

    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """[N, E], of images in any mode; transparent pixels are white."""
        shown = [to_rgb(image) for image in images]
        return self.image_cache.rows([image_key(image) for image in shown], shown, self._encode_images)

    def prompts(self, texts: Sequence[str]) -> Prompts:
        """Prompts longer than the model's context lose their tail."""
        tokens = [self._tokenizer(text, verbose=False)["input_ids"] for text in texts]
        features = self.text_cache.rows(list(texts), list(texts), self._encode_texts)
        return Prompts(features, tuple(max(len(each) - self._length, 0) for each in tokens))

    def _encode_images(self, images: list[Image.Image]) -> torch.Tensor:
        found = []
        for start in range(0, len(images), self._batch):
            some = [self._middle(image) for image in images[start : start + self._batch]]
            pixels = self._processor(images=some, return_tensors="pt", input_data_format="channels_last")
            found.append(self._towers.images(cast(torch.Tensor, pixels["pixel_values"])).cpu())
        return torch.cat(found)

    def _encode_texts(self, texts: list[str]) -> torch.Tensor:
        # A SigLIP was trained on prompts filled up to its whole context, with the padding looked at.
        whole = self.kind == "siglip"
        found = []
        for start in range(0, len(texts), self._batch):
            given = self._tokenizer(
                texts[start : start + self._batch],
                padding="max_length" if whole else True,
                truncation=True,
                max_length=self._length,
                return_tensors="pt",
            )
            found.append(self._towers.texts(given["input_ids"], None if whole else given["attention_mask"]).cpu())
        return torch.cat(found)

    def _middle(self, image: Image.Image) -> Image.Image:
        short, long = sorted(image.size)
        if long <= _LONGEST * short or "shortest_edge" not in dict(self._processor.size):
            return image
        kept = _LONGEST * short
        left, top = ((side - min(side, kept)) // 2 for side in image.size)
        return image.crop((left, top, left + min(image.width, kept), top + min(image.height, kept)))


def _load(source: Source, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Model, tokenizer and image processor. Raises SourceError for a folder that is damaged or not complete."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    local = {"local_files_only": True}
    load_processor: Any = AutoImageProcessor.from_pretrained  # not typed
    try:
        model, found = AutoModel.from_pretrained(
            source.path, dtype=dtype, weights_only=True, output_loading_info=True, **local
        )
        tokenizer = AutoTokenizer.from_pretrained(source.path, **local)
        processor = load_processor(source.path, backend="pil", **local)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise SourceError(f"{source.path}: cannot be loaded ({reason}); download the folder again, whole") from error
    # transformers fills what is missing with random numbers and only logs it.
    wrong = {kind: sorted(map(str, found[kind])) for kind in ("missing_keys", "mismatched_keys") if found[kind]}
    if wrong:
        raise SourceError(f"{source.path}: the weights are not those of its config.json ({wrong}); download them again")
    return model, tokenizer, processor


def cosines(first_NE: torch.Tensor, second_NE: torch.Tensor) -> list[float]:
    """The cosine of each row of unit vectors with its counterpart, in [-1, 1].

    Rounding can carry a sum of squares past 1, which would be outside the range that a reward declares.
    """
    return [
        value if math.isnan(value) else min(max(value, -1.0), 1.0) for value in (first_NE * second_NE).sum(-1).tolist()
    ]
