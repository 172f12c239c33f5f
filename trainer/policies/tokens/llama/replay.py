"""What given tokens are predicted from, with gradient: each prompt is computed once for all that follow it, equal answers to it once,
and nothing is padded.

Axes: P prompts, B rows (answers, or branches of an image), N tokens of all rows behind one another, V vocabulary, d hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from machine.transfers import numbers, sent
from trainer.policies.tokens.llama.forward import Continuations, run_layers
from trainer.policies.tokens.llama.inputs import Prefix
from trainer.policies.tokens.llama.layers import module_layers
from trainer.policies.tokens.llama.layout import TextModel


def shared_logits(model: TextModel, prefix: Prefix, prompt_B: Sequence[int], answers: Sequence[Tensor]) -> Tensor:
    """Logits (N, V) of each token of the answers, given the prompt and the tokens before it.

    Args:
        prefix: the P prompts, each computed once.
        prompt_B: which of them each answer is to.
        answers: int64 ids, at least one each.
    """
    # A policy that is nearly sure of what to say, says the same several times: equal answers to a prompt are one row.
    said = list(zip(prompt_B, (tuple(each.tolist()) for each in answers), strict=True))
    rows = sorted(set(said), key=lambda row: (len(row[1]), row))
    # The last token of an answer is predicted, and predicts nothing.
    ids_N = torch.tensor([token for _, tokens in rows for token in tokens[:-1]], dtype=torch.int64)
    x_Nd = model.text.embed_tokens(sent(ids_N, prefix.x_Nd.device))
    lengths = [len(tokens) for _, tokens in rows]
    hidden = shared_hidden(model, prefix, [prompt for prompt, _ in rows], x_Nd, [length - 1 for length in lengths])
    start = dict(zip(rows, accumulate(lengths, initial=0), strict=False))
    places_N = torch.tensor([start[row] + place for row in said for place in range(len(row[1]))])
    logits: Tensor = model.head(hidden.index_select(0, sent(places_N, hidden.device)))
    return logits


def shared_hidden(
    model: TextModel, prefix: Prefix, prompt_B: Sequence[int], x_Nd: Tensor, lengths: Sequence[int]
) -> Tensor:
    """Hidden states behind the last norm (N + B, d), for each of the B rows of its prompt's last token and of its own tokens.

    Args:
        prefix: the P prompts, each computed once.
        prompt_B: which of them each row continues.
        x_Nd: embeddings of all rows' tokens, one row after the other.
        lengths: tokens of each row; may be 0.
    """
    device = x_Nd.device
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    sorted_lengths, prompts = [lengths[row] for row in order], [prompt_B[row] for row in order]
    if order != list(range(len(lengths))):
        rows = x_Nd.split(list(lengths))
        x_Nd = torch.cat([rows[row] for row in order])
    within_N = numbers((place for length in sorted_lengths for place in range(length)), device)
    prompt_N = (prompt for prompt, length in zip(prompts, sorted_lengths, strict=True) for _ in range(length))
    positions_N = prefix.next_P.index_select(0, numbers(prompt_N, device)) + within_N
    cos_1ND, sin_1ND = model.text.rotary_emb(x_Nd[None], positions_N[None])
    given = Continuations(x_Nd, cos_1ND[0], sin_1ND[0], sorted_lengths, numbers(prompts, device))
    computed = run_layers(module_layers(model), prefix, given)
    hidden = torch.cat([computed.last_Pd, computed.x_Nd])
    predicting = numbers(_predicting(prompt_B, order, sorted_lengths, len(prefix.lengths)), device)
    normed: Tensor = model.text.norm(hidden.index_select(0, predicting))
    return normed


def _predicting(prompt_B: Sequence[int], order: Sequence[int], lengths: Sequence[int], prompts: int) -> list[int]:
    """For each token that is predicted, which row of (last tokens of prompts, then tokens of answers in their order) does it."""
    starts = dict(zip(order, zip(accumulate(lengths, initial=prompts), lengths, strict=False), strict=True))
    rows: list[int] = []
    for row, prompt in enumerate(prompt_B):
        start, length = starts[row]
        rows += [prompt, *range(start, start + length)]
    return rows
