"""Texts and images drawn token by token: fused weights, keys and values in one preallocated place, prompts computed once, ended rows dropped.

Axes: P prompts, B rows (answers, or branches of an image), T columns of prompts, S tokens of a row, W columns of keys (T + S), H heads, K heads of keys
and values, D size of a head, d hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.policies.tokens.llama.attention import rotated, turned
from trainer.policies.tokens.llama.forward import Computed, run_layers
from trainer.policies.tokens.llama.inputs import Prefix
from trainer.policies.tokens.llama.layers import FusedLayer, computed_type
from trainer.policies.tokens.llama.layout import TextModel

# Ended rows are dropped once they are this share of those computed: dropping copies the keys and values of the others.
_DROPPED_FROM = 1 / 8


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn at one position.

    Attributes:
        token_B, logp_B: ids and their log-probabilities.
        kept_BV: bool, which tokens could be drawn; None where all could.
        rows_B: which of all rows these are.
    """

    token_B: Tensor
    logp_B: Tensor
    kept_BV: Tensor | None
    rows_B: Tensor


# Hidden states (B, d) behind the last norm, the position, and which of all rows these are: ids, log-probabilities, kept.
Choose = Callable[[Tensor, int, Tensor], tuple[Tensor, Tensor, Tensor | None]]
# Ids (B,): embeddings (B, d).
Embed = Callable[[Tensor], Tensor]


@torch.no_grad()
def decode(
    model: TextModel,
    layers: Sequence[FusedLayer],
    prefix: Prefix,
    prompt_B: Tensor,
    choose: Choose,
    embed: Embed,
    ends_E: Tensor,
    longest: int,
) -> list[Drawn]:
    """Draw tokens behind a prompt for each row; what is drawn behind a row's end is the caller's to cut off.

    Args:
        prefix: the P prompts (`read_prefix`, `embedded_prefix`).
        prompt_B: which of them each row continues.
        choose: makes logits of hidden states, and draws the next tokens.
        embed: what the first layer takes of tokens that were drawn.
        ends_E: ids that end a row; none where all rows have the full length.
        longest: tokens after which a row is cut off.
    """
    computed = run_layers(layers, prefix)
    table = _Table.of(model, int(prefix.next_P.max()) + longest)
    rows = _Rows.of(prefix, computed, prompt_B, longest)
    x_Bd = computed.last_Pd.index_select(0, prompt_B)
    found = []
    for number in range(longest):
        token_B, logp_B, kept_BV = choose(model.text.norm(x_Bd), number, rows.rows_B)
        found.append(Drawn(token_B, logp_B, kept_BV, rows.rows_B))
        if number == longest - 1:
            break
        if len(ends_E):  # to count the rows that have ended, the computer waits for the device
            rows.ended_B = rows.ended_B | torch.isin(token_B, ends_E)
            ended = int(rows.ended_B.sum())
            if ended == len(token_B):
                break
            if ended >= max(1, len(token_B) * _DROPPED_FROM):
                left = (~rows.ended_B).nonzero()[:, 0]
                rows, token_B = rows.only(left), token_B.index_select(0, left)
        x_Bd = _step(model, layers, rows, table, embed(token_B), number)
    return found


@dataclass(frozen=True, eq=False)
class _Table:
    """Cosines and turned sines (L, D) of all rotary positions that can come, from the model's own module."""

    cos_LD: Tensor
    sin_LD: Tensor

    @staticmethod
    def of(model: TextModel, length: int) -> _Table:
        # Where an image has positions along several axes, text has the same one on each.
        cos, sin = model.text.rotary_emb(model.weight, torch.arange(length, device=model.weight.device)[None])
        return _Table(cos[0], turned(sin[0]))


@dataclass(eq=False)
class _Rows:
    """The rows that are still computed.

    Attributes:
        rows_B: their numbers among all rows.
        ended_B: bool, those that have ended and are not dropped yet.
        next_B: position of the first token of each answer.
        keys: of each layer (B, K, D, W): a query's product then runs along the columns.
        values: of each layer (B, K, W, D).
        mask_BW: minus infinity where a prompt is shorter than the longest; None where all are equally long.
        columns: of the prompts; what is drawn begins behind them in every row.
    """

    rows_B: Tensor
    ended_B: Tensor
    next_B: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    mask_BW: Tensor | None
    columns: int

    @staticmethod
    def of(prefix: Prefix, computed: Computed, prompt_B: Tensor, longest: int) -> _Rows:
        device, count, columns = prompt_B.device, len(prompt_B), max(prefix.lengths)
        keys, values = [], []
        for keys_PTKD, values_PTKD in zip(computed.keys, computed.values, strict=True):
            heads, width = keys_PTKD.shape[2:]
            dtype = computed_type(keys_PTKD)
            keys.append(keys_PTKD.new_empty(count, heads, width, columns + longest, dtype=dtype))
            values.append(keys_PTKD.new_empty(count, heads, columns + longest, width, dtype=dtype))
            keys[-1][..., :columns] = keys_PTKD.permute(0, 2, 3, 1).index_select(0, prompt_B)
            values[-1][:, :, :columns] = values_PTKD.transpose(1, 2).index_select(0, prompt_B)
        mask_BW = None
        if min(prefix.lengths) < columns:
            column_W = torch.arange(columns + longest, device=device)
            lengths_P1 = torch.tensor(prefix.lengths, device=device)[:, None]
            is_gap_PW = (column_W >= lengths_P1) & (column_W < columns)
            mask_PW = keys[0].new_zeros(is_gap_PW.shape).masked_fill(is_gap_PW, -torch.inf)
            mask_BW = mask_PW.index_select(0, prompt_B)
        ended_B = torch.zeros(count, dtype=torch.bool, device=device)
        next_B = prefix.next_P.index_select(0, prompt_B)
        return _Rows(torch.arange(count, device=device), ended_B, next_B, keys, values, mask_BW, columns)

    def only(self, left: Tensor) -> _Rows:
        return _Rows(
            self.rows_B.index_select(0, left),
            self.ended_B.index_select(0, left),
            self.next_B.index_select(0, left),
            [keys.index_select(0, left) for keys in self.keys],
            [values.index_select(0, left) for values in self.values],
            None if self.mask_BW is None else self.mask_BW.index_select(0, left),
            self.columns,
        )


def _step(
    model: TextModel, layers: Sequence[FusedLayer], rows: _Rows, table: _Table, x_Bd: Tensor, number: int
) -> Tensor:
    """Hidden states (B, d) behind the last layer of token `number` of each row, of its embedding `x_Bd`."""
    position_B, column = rows.next_B + number, rows.columns + number
    cos_BD, sin_BD = table.cos_LD.index_select(0, position_B), table.sin_LD.index_select(0, position_B)
    for layer, keys, values in zip(layers, rows.keys, rows.values, strict=True):
        heads, value = layer.heads(x_Bd)
        queries, key = rotated(heads, cos_BD, sin_BD).split([model.heads, model.key_heads], 1)
        keys[..., column], values[:, :, column] = key, value
        x_Bd = layer.close(x_Bd, _attended(queries, keys, values, rows.mask_BW, column + 1))
    return x_Bd


def _attended(queries_BHD: Tensor, keys: Tensor, values: Tensor, mask_BW: Tensor | None, columns: int) -> Tensor:
    """(B, H * D). H / K queries ask each head of keys in one product."""
    rows, key_heads, width = keys.shape[:3]
    queries = queries_BHD.reshape(rows * key_heads, -1, width)
    scores = torch.bmm(queries, keys.flatten(0, 1)[..., :columns]) * width**-0.5
    if mask_BW is not None:
        scores = (scores.unflatten(0, (rows, key_heads)) + mask_BW[:, None, None, :columns]).flatten(0, 1)
    shares = functional.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)
    return torch.bmm(shares, values.flatten(0, 1)[:, :columns]).reshape(rows, -1)
