"""Logits of given answers, with gradient: each prompt is computed once for all its answers, and nothing is padded.

Axes: P prompts, B answers, N tokens of all answers behind one another, V vocabulary, d hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from trainer.policies.tokens.llama.forward import Continuations, run_layers
from trainer.policies.tokens.llama.inputs import read_prefix
from trainer.policies.tokens.llama.layers import module_layers
from trainer.policies.tokens.llama.layout import TextModel


def shared_logits(
    model: TextModel, batch: Mapping[str, Any], prompt_B: Sequence[int], answers: Sequence[Tensor]
) -> Tensor:
    """Logits (N, V) of each token of the answers, given the prompt and the tokens before it.

    Args:
        batch: the arguments of the model's forward for the P prompts, padded left or right.
        prompt_B: which of them each answer is to.
        answers: int64 ids, at least one each.
    """
    prefix = read_prefix(model, batch)
    device = prefix.x_Nd.device
    # The last token of an answer is predicted, and predicts nothing.
    order = sorted(range(len(answers)), key=lambda row: len(answers[row]))
    lengths = [len(answers[row]) - 1 for row in order]
    prompts = torch.tensor([prompt_B[row] for row in order], device=device)
    ids_N = torch.cat([answers[row][:-1] for row in order]).to(device)
    within_N = torch.cat([torch.arange(length) for length in lengths]).to(device)
    positions_N = prefix.next_P[prompts].repeat_interleave(torch.tensor(lengths, device=device)) + within_N
    x_Nd = model.text.embed_tokens(ids_N)
    cos_1ND, sin_1ND = model.text.rotary_emb(x_Nd[None], positions_N[None])
    computed = run_layers(module_layers(model), prefix, Continuations(x_Nd, cos_1ND[0], sin_1ND[0], lengths, prompts))
    hidden = torch.cat([computed.last_Pd, computed.x_Nd])
    predicting = _predicting(prompt_B, order, lengths, len(prefix.lengths)).to(device)
    logits: Tensor = model.head(model.text.norm(hidden.index_select(0, predicting)))
    return logits


def _predicting(prompt_B: Sequence[int], order: Sequence[int], lengths: Sequence[int], prompts: int) -> Tensor:
    """For each token of the answers, which row of (last tokens of prompts, then tokens of answers in their order) predicts it."""
    starts = dict(zip(order, zip(accumulate(lengths, initial=prompts), lengths, strict=False), strict=True))
    rows: list[int] = []
    for row, prompt in enumerate(prompt_B):
        start, length = starts[row]
        rows += [prompt, *range(start, start + length)]
    return torch.tensor(rows)
