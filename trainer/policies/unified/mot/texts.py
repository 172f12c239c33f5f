"""A Mixture-of-Transformers as a model that writes: a question's images are seen, then its text is read, and the answer is written.

Axes: P prompts, B answers, S tokens of an answer, N tokens of all answers behind one another, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from trainer.config import ConfigError
from trainer.policies.lora import autocast
from trainer.policies.tokens.draw import Answer, Reading, TokenPlan
from trainer.policies.tokens.model import TokenModel
from trainer.policies.tokens.trace import AnswerTrace
from trainer.policies.unified.mot.inference import engine
from trainer.policies.unified.mot.inference.context import Context
from trainer.policies.unified.mot.lay import LaidRow
from trainer.policies.unified.mot.model import MotModel
from trainer.policies.unified.mot.network import MotNetwork
from trainer.policies.unified.mot.pack import pack_rows
from trainer.types import Prompt


@dataclass(frozen=True, eq=False)
class RowReading(Reading):
    """A prompt laid out as a row of training is; `ids_T` are its words and tags."""

    row: LaidRow = field(default_factory=lambda: LaidRow(""))


class MotTexts(TokenModel):
    """What `TokenPolicy` asks of a model, by a network that is none of transformers': nothing of TokenModel's own beginning is used."""

    def __init__(self, model: MotModel) -> None:
        self._model = model
        self.network, self.device, self.about = model.network, model.device, model.about
        self.tokenizer = self.processor = model.words.tokenizer
        self.ends, self.banned_N = [model.words.end], engine.banned(model)

    @property
    def longest(self) -> int | None:
        return None  # rotary positions have no end

    def computing(self) -> AbstractContextManager[None]:
        return cast(AbstractContextManager[None], autocast(self._model.config, self.device))

    def read(self, prompt: Prompt) -> RowReading:
        """Raises ConfigError naming the prompt."""
        most = self._model.config.max_images
        if len(prompt.source_images) > most:
            raise ConfigError(
                f"prompt {prompt.id!r} has {len(prompt.source_images)} images, and at most {most} are read; leave it out"
            )
        row = Context(prompt.id).questioned(prompt).laid(self._model)
        return RowReading(torch.tensor(row.words), text=prompt.text, images=tuple(prompt.source_images), row=row)

    def draw(
        self, readings_P: Sequence[Reading], group_size: int, seeds_B: Sequence[int], plan: TokenPlan
    ) -> list[Answer]:
        """As `trainer.policies.tokens.draw.Drawer`: a prompt is read once for its whole group."""
        cache = engine.read(self._model, [cast(RowReading, each).row for each in readings_P])
        return engine.write(self._model, cache.repeated(group_size), seeds_B, plan)


def answer_logits(model: MotTexts, network: nn.Module, trace: AnswerTrace) -> Tensor:
    """(N, V), differentiable: of the tokens of all answers, one answer after the other."""
    rows = [
        _answered(cast(RowReading, reading).row, tokens_S.tolist(), model._model.words.start)
        for reading, tokens_S in zip(trace.readings_B, trace.tokens_B, strict=True)
    ]
    whole = model._model
    given = pack_rows(rows, whole.codec, whole.network.geometry, whole.device, whole.way)
    und, _ = network(given.tokens, given.attends)
    return cast(MotNetwork, network).logits(und[given.asked_T])


def _answered(row: LaidRow, tokens: Sequence[int], start: int) -> LaidRow:
    """The row with an answer behind it: each of its tokens is predicted at the place of the one before."""
    words, und, asked = list(row.words), list(row.und), []
    order = 1 + max((place[2] for place in und), default=-1)
    for number, (given, wanted) in enumerate(zip((start, *tokens[:-1]), tokens, strict=True)):
        asked.append((len(und), wanted))
        und.append((len(words), row.position + number, order + number, 0, False))
        words.append(given)
    return replace(row, words=words, und=und, asked=asked)
