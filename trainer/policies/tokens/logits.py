"""Logits of given answers under the present weights: each prompt read once for its group where the layers are Llama's.

Axes: B answers, T tokens of a prompt, S tokens of an answer, N tokens of all answers behind one another, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.policies.tokens.llama.inputs import prefix_of
from trainer.policies.tokens.llama.layout import supports, text_model
from trainer.policies.tokens.llama.replay import shared_logits
from trainer.policies.tokens.model import TokenModel
from trainer.policies.tokens.trace import AnswerTrace


def answer_logits(model: TokenModel, network: nn.Module, trace: AnswerTrace) -> Tensor:
    """(N, V), differentiable: of each answer's tokens, one answer after the other.

    Args:
        network: the model's own, or a copy of it with other weights.
    """
    shows_later = any(reading.later for reading in trace.readings_B)  # a prompt read apart would miss them
    if model.config.gradient_checkpointing or shows_later or supports(network) is not None:
        return plain_logits(model, network, trace)
    readings = list({id(reading): reading for reading in trace.readings_B}.values())
    number = {id(reading): place for place, reading in enumerate(readings)}
    prompt_B = [number[id(reading)] for reading in trace.readings_B]
    text = text_model(network)
    return shared_logits(text, prefix_of(model, text, readings), prompt_B, trace.tokens_B)


def plain_logits(model: TokenModel, network: Any, trace: AnswerTrace) -> Tensor:
    """The same by the model's own forward, each prompt with each answer."""
    lengths = [len(each.ids_T) for each in trace.readings_B]
    batch = model.collate(trace.readings_B, trace.tokens_B)
    # Logits at place i are of token i + 1; those of prompts are not needed, and a vocabulary is wide.
    first, last = min(lengths) - 1, batch["input_ids"].shape[1] - 1
    places = torch.arange(first, last, device=model.device)
    logits_BWV: Tensor = network(**batch, logits_to_keep=places, use_cache=False).logits
    rows = []
    for row, (length, tokens_S) in enumerate(zip(lengths, trace.tokens_B, strict=True)):
        start = length - 1 - first
        rows.append(logits_BWV[row, start : start + len(tokens_S)])
    return torch.cat(rows)
