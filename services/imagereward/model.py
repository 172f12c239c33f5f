"""The network of ImageReward on one device. Axes: N items, L tokens, E features."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from services.imagereward.layout import REMEDY, Parts, split
from services.kit.models.linear_head import LinearHead
from services.kit.models.sources import SourceError
from services.kit.models.tensors import read_tensors

# The head's mean and standard deviation over the published training set: scores are in its units.
MEAN, STD = 0.16717362830052426, 1.0333394966054072


class ImageRewardModel:
    """Raw outputs of the head for pairs of image and prompt. Not thread-safe."""

    def __init__(self, parts: Parts, path: Path, device: torch.device, dtype: Literal["bf16", "fp32"]) -> None:
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        self.image_size = int(parts.vision_config["image_size"])
        self.vocabulary = int(parts.text_config["vocab_size"])
        self._device = device
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16")
        vision = BlipVisionModel(BlipVisionConfig(**parts.vision_config))
        text_model: Any = BlipTextModel  # not typed
        text = text_model(BlipTextConfig(**parts.text_config), add_pooling_layer=False)
        self._vision, self._text = _fill(vision, parts.vision, path, device), _fill(text, parts.text, path, device)
        self._head = LinearHead({key: value.to(device) for key, value in parts.head.items()}, path)

    @torch.inference_mode()
    def raw(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> list[float]:
        """N numbers, of normalised pixels [N, 3, side, side], token ids [N, L] and their mask [N, L].

        The text tower reads the prompt and looks at the image; its first token's features go through the head.
        """
        with self._autocast:
            seen = self._vision(pixel_values=pixels.to(self._device)).last_hidden_state
            read = self._text(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                encoder_hidden_states=seen,
                encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=self._device),
                is_decoder=False,
            ).last_hidden_state
        return self._head(read[:, 0].float())


def load_model(path: Path, device: torch.device, dtype: Literal["bf16", "fp32"]) -> ImageRewardModel:
    """Read a published or converted file. Raises SourceError when it is damaged or another model's."""
    return ImageRewardModel(split(read_tensors(path), path), path, device, dtype)


def _fill(module: Any, state: dict[str, torch.Tensor], path: Path, device: torch.device) -> Any:
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        raise SourceError(f"{path}: {len(wrong)} tensors are missing or of another shape, such as {wrong[0]}; {REMEDY}")
    module.load_state_dict(state)
    return module.float().to(device).train(False).requires_grad_(False)
