"""The layers over prompts, and over answers that share them: each prompt is computed once, whatever the number of its answers.

Axes: P prompts, B answers, N tokens of all prompts and then of all answers, without padding; d hidden, H heads, K heads of keys
and values, D size of a head; T, S columns of prompts and answers where they are padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from machine.transfers import numbers
from trainer.policies.tokens.llama.attention import Ragged, attend, rotated, turned
from trainer.policies.tokens.llama.inputs import Prefix
from trainer.policies.tokens.llama.layers import Layer


@dataclass(frozen=True)
class Continuations:
    """Answers as the first layer takes them.

    Attributes:
        x_Nd, cos_ND, sin_ND, lengths: as of a `Prefix`; lengths rise, and may be 0.
        prompt_B: which prompt each continues.
    """

    x_Nd: Tensor
    cos_ND: Tensor
    sin_ND: Tensor
    lengths: Sequence[int]
    prompt_B: Tensor


@dataclass(frozen=True)
class Computed:
    """Attributes:
    last_Pd: hidden states of the prompts' last tokens, before the last norm.
    x_Nd: those of the answers' tokens.
    keys, values: of the prompts, for each layer, padded on the right (P, T, K, D); keys are rotated.
    """

    last_Pd: Tensor
    x_Nd: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


def run_layers(layers: Sequence[Layer], prefix: Prefix, answers: Continuations | None = None) -> Computed:
    """Hidden states of the prompts' last tokens and of all tokens of the answers."""
    device = prefix.x_Nd.device
    prompts = Ragged.of(prefix.lengths, device)
    written = [] if answers is None else _written(prompts, answers, device)
    x_Nd, cos_ND, sin_ND = prefix.x_Nd, prefix.cos_ND, prefix.sin_ND
    if answers is not None:
        x_Nd, cos_ND, sin_ND = (
            torch.cat([getattr(prefix, name), getattr(answers, name)]) for name in ("x_Nd", "cos_ND", "sin_ND")
        )
    sin_ND = turned(sin_ND)
    last_P = numbers(prefix.lengths, device).cumsum(0) - 1
    count, all_keys, all_values = len(prefix.x_Nd), [], []
    for number, layer in enumerate(layers):
        heads, values = layer.heads(x_Nd)
        heads = rotated(heads, cos_ND, sin_ND)
        queries, keys = heads.split([heads.shape[1] - values.shape[1], values.shape[1]], 1)
        keys_PTKD, values_PTKD = prompts.pad(keys[:count]), prompts.pad(values[:count])
        all_keys.append(keys_PTKD)
        all_values.append(values_PTKD)
        is_last = number == len(layers) - 1
        if is_last:  # nothing reads the other tokens of a prompt any more, beyond their keys and values
            x_Nd = torch.cat([x_Nd.index_select(0, last_P), x_Nd[count:]])
            ends = queries.index_select(0, last_P)[:, None]
            attended = attend(ends, keys_PTKD, values_PTKD, prompts.inside(device)[:, None]).flatten(0, 1)
        else:
            attended = prompts.flat(attend(prompts.pad(queries[:count]), keys_PTKD, values_PTKD, None))
        own = (queries[count:], keys[count:], values[count:])
        attended = torch.cat([attended, *(each.attend(*own, keys_PTKD, values_PTKD) for each in written)])
        x_Nd = layer.close(x_Nd, attended)
        if number < len(prefix.added) and not is_last:
            added = prefix.added[number]
            x_Nd = torch.cat([x_Nd[:count] + added.to(x_Nd.dtype), x_Nd[count:]])
    return Computed(x_Nd[: len(last_P)], x_Nd[len(last_P) :], all_keys, all_values)


@dataclass(frozen=True, eq=False)
class _Written:
    """Attention of answers of about one length: to the prompt of each, and to its own tokens up to the one that asks.

    Attributes:
        tokens: where theirs are among all tokens of answers.
        ragged: their lengths.
        prompt_B: the prompt of each.
        allowed_BST: what each token sees, of the prompt and of its own answer.
    """

    tokens: slice
    ragged: Ragged
    prompt_B: Tensor
    allowed_BST: Tensor

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, keys_PTKD: Tensor, values_PTKD: Tensor) -> Tensor:
        keys_B, values_B = (
            torch.cat([of_prompts.index_select(0, self.prompt_B), self.ragged.pad(own[self.tokens])], 1)
            for of_prompts, own in ((keys_PTKD, keys), (values_PTKD, values))
        )
        return self.ragged.flat(attend(self.ragged.pad(queries[self.tokens]), keys_B, values_B, self.allowed_BST))


def _written(prompts: Ragged, answers: Continuations, device: torch.device) -> list[_Written]:
    """The answers in parts whose lengths differ by less than a factor of two: only attention pads, and so little."""
    found, first, start = [], 0, 0
    for last in range(1, len(answers.lengths) + 1):
        if last < len(answers.lengths) and answers.lengths[last].bit_length() == answers.lengths[first].bit_length():
            continue
        lengths, prompt_B = answers.lengths[first:last], answers.prompt_B[first:last]
        ragged, end = Ragged.of(lengths, device), start + sum(lengths)
        rows, longest = ragged.shape
        of_prompt = prompts.inside(device).index_select(0, prompt_B)[:, None].expand(-1, longest, -1)
        own = torch.ones(longest, longest, dtype=torch.bool, device=device).tril().expand(rows, -1, -1)
        if longest:
            found.append(_Written(slice(start, end), ragged, prompt_B, torch.cat([of_prompt, own], -1)))
        first, start = last, end
    return found
