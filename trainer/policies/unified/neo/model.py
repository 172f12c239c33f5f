"""A native model with its tokenizer: prompts in, answers out; rows in, errors of their learnt tokens out.

Axes: B rows, T tokens of a prompt, S of an answer, N tokens of all answers behind one another, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from machine.transfers import numbers
from trainer.config import ConfigError
from trainer.config.neo import NeoConfig
from trainer.policies.lora import autocast
from trainer.policies.tokens.model import TokenModel
from trainer.policies.tokens.trace import AnswerTrace
from trainer.policies.unified.neo.attending import attend_packs, way_of
from trainer.policies.unified.neo.network import NeoNetwork
from trainer.policies.unified.neo.processor import NeoProcessor
from trainer.policies.unified.neo.rows import Row, packed, row_of
from trainer.policies.unified.neo.tokenizer import FRAMES
from trainer.types import Turn


class NeoModel(TokenModel):
    """The networks of the policy `neo`. It reads prompts as every model that writes does, and rows of packs beside."""

    network: NeoNetwork
    processor: NeoProcessor
    config: NeoConfig

    def __init__(
        self,
        network: NeoNetwork,
        processor: NeoProcessor,
        config: NeoConfig,
        device: torch.device,
        *,
        fields: Mapping[str, Any],
        about: str,
    ) -> None:
        """
        Args:
            fields: of its config.json, which an export writes again.
        """
        super().__init__(network, processor, config, device, about=about)
        self.fields = fields
        self.way = way_of(config.attention, device)
        frames = [processor.image_id, processor.start_id, processor.end_id]
        self.banned_N = torch.tensor(sorted({*self.banned_N.tolist(), *frames}), dtype=torch.int64)

    def computing(self) -> AbstractContextManager[None]:
        return cast(AbstractContextManager[None], autocast(self.config, self.device))

    def row(self, reading: Any, answer_S: Tensor | None = None) -> Row:
        """A prompt as the network takes it, with an answer behind it."""
        return row_of(reading, self.processor.image_id, 3 * self.network.geometry.patch_size**2, answer_S)

    def answer_logits(self, network: nn.Module, trace: AnswerTrace) -> Tensor:
        """(N, V), differentiable: of each answer's tokens, one answer after the other. Equal answers to a prompt are read once.

        Args:
            network: the model's own, or a copy of it with other weights.
        """
        said = [(id(r), tuple(t.tolist())) for r, t in zip(trace.readings_B, trace.tokens_B, strict=True)]
        first = {key: row for row, key in reversed(list(enumerate(said)))}
        distinct = list(dict.fromkeys(said))
        rows = [self.row(trace.readings_B[first[key]], trace.tokens_B[first[key]]) for key in distinct]
        starts, start = {}, 0
        for key, row in zip(distinct, rows, strict=True):
            # The token at a place predicts the next one.
            starts[key] = start + len(trace.readings_B[first[key]].ids_T) - 1
            start += len(row.ids_T)
        wanted = [starts[key] + place for key in distinct for place in range(len(key[1]))]
        given, layout = packed(rows, self.device)
        logits: Tensor = network(given, attend_packs(layout, self.way), numbers(wanted, self.device))
        place_of, offset = {}, 0
        for key in distinct:
            place_of[key], offset = offset, offset + len(key[1])
        chosen = [place_of[key] + place for key in said for place in range(len(key[1]))]
        return logits.index_select(0, numbers(chosen, self.device))

    def _refuse_placeholders(self, where: str, turns: Sequence[Turn]) -> None:
        for name in FRAMES:
            if any(name in turn.text for turn in turns):
                raise ConfigError(
                    f"{where} has {name} in its text, which stands for an image in this model; write <image> where an image is to be "
                    "shown, or take it out"
                )
