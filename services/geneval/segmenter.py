"""Mask2Former's network as transformers names its weights, without the loss that it is trained with.

transformers' own class builds the loss, too, whose matching of masks needs scipy: a package that no image here is scored
with. The network and its one linear layer for the classes do not.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerModel, Mask2FormerPreTrainedModel


class Segmenter(Mask2FormerPreTrainedModel):
    """Loads the folder of a `Mask2FormerForUniversalSegmentation`; its loss's one tensor is passed over."""

    _keys_to_ignore_on_load_unexpected = [r"criterion\."]  # noqa: RUF012  # transformers' own name for it

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = torch.nn.Linear(config.hidden_dim, len(config.id2label or {}) + 1)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of one image [1, 3, height, width]: class logits [queries, classes + 1], the last for "nothing", and mask
        logits [queries, height / 4, width / 4]."""
        outputs: Any = self.model(pixel_values=pixel_values)
        classes = self.class_predictor(outputs.transformer_decoder_last_hidden_state)
        return classes[0], outputs.masks_queries_logits[-1][0]
