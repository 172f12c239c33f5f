"""Texts and images drawn token by token: fused weights, keys and values in one preallocated place, and nothing computed twice.

Rows that have written the same to the same prompt have the same next distribution, so each such beginning is computed once, and
each row draws from it with its own number. A prompt is the beginning of all that follows it. Ended rows are in none.

Axes: P prompts, B rows (answers, or branches of an image), U beginnings, T columns of prompts, S tokens of a row, W columns of keys
(T + S), H heads, K heads of keys and values, D size of a head, d hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from machine.transfers import numbers, sent
from trainer.policies.tokens.llama.attention import rotated, turned
from trainer.policies.tokens.llama.forward import Computed, run_layers
from trainer.policies.tokens.llama.inputs import Prefix
from trainer.policies.tokens.llama.layers import FusedLayer, computed_type
from trainer.policies.tokens.llama.layout import TextModel


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn at one position.

    Attributes:
        token_B, logp_B: ids and their log-probabilities.
        kept_BV: bool, which tokens could be drawn; None where all could.
        rows_B: which of all rows these are: those that had not ended before; on the CPU.
    """

    token_B: Tensor
    logp_B: Tensor
    kept_BV: Tensor | None
    rows_B: Tensor


# Hidden states (B, d) behind the last norm, the position, and which of all rows these are (on the device): ids, log-probabilities,
# kept.
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
    ends: Sequence[int],
    longest: int,
) -> list[Drawn]:
    """Draw tokens behind a prompt for each row, up to its end.

    Which rows go on, and where, is kept on the CPU: of a token it waits for the device once, where rows may have ended or may have
    written the same, and not at all once every row has a beginning of its own and none can end.

    Args:
        prefix: the P prompts (`read_prefix`, `embedded_prefix`).
        prompt_B: which of them each row continues; on the CPU.
        choose: makes logits of hidden states, and draws the next tokens.
        embed: what the first layer takes of tokens that were drawn.
        ends: ids that end a row; none where all rows have the full length.
        longest: tokens after which a row is cut off.
    """
    computed, device = run_layers(layers, prefix), prefix.next_P.device
    table = _Table.of(model, int(prefix.next_P.max()) + longest)
    beginnings = _Beginnings.of(prefix, computed, len(prompt_B), longest)
    x_Ud, place_B, rows_B, ends_E = computed.last_Pd, prompt_B, torch.arange(len(prompt_B)), torch.tensor(ends)
    rows_there_B = sent(rows_B, device)
    found: list[Drawn] = []
    while True:
        last_Bd = model.text.norm(x_Ud).index_select(0, sent(place_B, device))
        token_B, logp_B, kept_BV = choose(last_Bd, len(found), rows_there_B)
        found.append(Drawn(token_B, logp_B, kept_BV, rows_B))
        if len(found) == longest:
            return found
        if not ends and beginnings.are_apart(place_B):
            token_U = token_B.index_select(0, sent(place_B.argsort(), device))
        else:
            token_B = token_B.cpu()  # the computer waits for the device
            if ends:
                left = torch.isin(token_B, ends_E, invert=True).nonzero()[:, 0]
                if not len(left):
                    return found
                if len(left) < len(rows_B):
                    rows_B, place_B, token_B = (each.index_select(0, left) for each in (rows_B, place_B, token_B))
                    rows_there_B = sent(rows_B, device)
            place_B, token_U = beginnings.go_on(place_B, token_B)
            token_U = sent(token_U, device)
        x_Ud = _step(model, layers, beginnings, table, embed(token_U))


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
class _Beginnings:
    """What has been written so far, each beginning in a place of its own; the first U places are used.

    Attributes:
        prompt_U: which prompt each continues; on the CPU.
        keys: of each layer (B, K, D, W): a query's product then runs along the columns.
        values: of each layer (B, K, W, D).
        next_P: position of the first token behind each prompt.
        mask_PW: minus infinity where a prompt is shorter than the longest; None where all are equally long.
        columns: those that are written; what is drawn begins behind the longest prompt in every place.
        written: those of them that were drawn.
        have_parted: whether each of the rows that went on last had a beginning of its own.
    """

    prompt_U: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    next_P: Tensor
    mask_PW: Tensor | None
    columns: int
    written: int = 0
    have_parted: bool = False

    @staticmethod
    def of(prefix: Prefix, computed: Computed, rows: int, longest: int) -> _Beginnings:
        """The prompts, with room for `rows` rows of `longest` tokens behind them."""
        device, prompts, columns = prefix.next_P.device, len(prefix.lengths), max(prefix.lengths)
        keys, values = [], []
        for keys_PTKD, values_PTKD in zip(computed.keys, computed.values, strict=True):
            heads, width = keys_PTKD.shape[2:]
            dtype, room = computed_type(keys_PTKD), max(rows, prompts)
            keys.append(keys_PTKD.new_empty(room, heads, width, columns + longest, dtype=dtype))
            values.append(keys_PTKD.new_empty(room, heads, columns + longest, width, dtype=dtype))
            keys[-1][:prompts, :, :, :columns] = keys_PTKD.permute(0, 2, 3, 1)
            values[-1][:prompts, :, :columns] = values_PTKD.transpose(1, 2)
        mask_PW = None
        if min(prefix.lengths) < columns:
            column_W = torch.arange(columns + longest, device=device)
            lengths_P1 = numbers(prefix.lengths, device)[:, None]
            is_gap_PW = (column_W >= lengths_P1) & (column_W < columns)
            mask_PW = keys[0].new_zeros(is_gap_PW.shape).masked_fill(is_gap_PW, -torch.inf)
        return _Beginnings(torch.arange(prompts), keys, values, prefix.next_P, mask_PW, columns)

    def are_apart(self, place_B: Tensor) -> bool:
        """Whether each of these rows has a beginning of its own, and none has ended since: each then goes on in its place."""
        return self.have_parted and len(place_B) == len(self.prompt_U)

    def go_on(self, place_B: Tensor, token_B: Tensor) -> tuple[Tensor, Tensor]:
        """Let rows write a token each: the place of each row's beginning from now on, and each beginning's last token (U,). All are on
        the CPU.

        Args:
            place_B: of the beginnings that they go on from; those that no row goes on from are forgotten.
        """
        if self.are_apart(place_B):
            return place_B, token_B.index_select(0, place_B.argsort())
        vocabulary = token_B.max() + 1
        pair_U, beginning_B = torch.unique(place_B * vocabulary + token_B, return_inverse=True)
        before_U = pair_U // vocabulary
        self.have_parted = len(pair_U) == len(place_B)
        place_U, is_copied_U = places(before_U)
        if bool(is_copied_U.any()):
            device = self.next_P.device
            source, target = sent(before_U[is_copied_U], device), sent(place_U[is_copied_U], device)
            for keys, values in zip(self.keys, self.values, strict=True):
                keys[target, :, :, : self.columns] = keys[source, :, :, : self.columns]
                values[target, :, : self.columns] = values[source, :, : self.columns]
        order_U = place_U.argsort()
        self.prompt_U = self.prompt_U.index_select(0, before_U.index_select(0, order_U))
        return place_U.index_select(0, beginning_B), (pair_U % vocabulary).index_select(0, order_U)


def places(before_U: Tensor) -> tuple[Tensor, Tensor]:
    """A place below U for each of U beginnings, and bool (U,), which of them must be copied there.

    The first that goes on from an earlier beginning stays in its place; the others take places that are free, and so do those whose
    place is not below U. So a row is copied only when it first differs from the others, or when many have ended.

    Args:
        before_U: places of the beginnings that they go on from, in rising order.

    >>> places(torch.tensor([0, 0, 3]))
    (tensor([0, 1, 2]), tensor([False,  True,  True]))
    """
    is_first_U = torch.ones_like(before_U, dtype=torch.bool)
    is_first_U[1:] = before_U[1:] != before_U[:-1]
    stays_U = is_first_U & (before_U < len(before_U))
    is_free_U = torch.ones_like(stays_U)
    is_free_U[before_U[stays_U]] = False
    place_U = before_U.clone()
    place_U[~stays_U] = is_free_U.nonzero()[:, 0]
    return place_U, ~stays_U


def _step(
    model: TextModel, layers: Sequence[FusedLayer], beginnings: _Beginnings, table: _Table, x_Ud: Tensor
) -> Tensor:
    """Hidden states (U, d) behind the last layer of the token that each beginning goes on with, of its embedding `x_Ud`."""
    count, column, prompt_U = len(x_Ud), beginnings.columns, sent(beginnings.prompt_U, x_Ud.device)
    position_U = beginnings.next_P.index_select(0, prompt_U) + beginnings.written
    cos_UD, sin_UD = table.cos_LD.index_select(0, position_U), table.sin_LD.index_select(0, position_U)
    mask_UW = None if beginnings.mask_PW is None else beginnings.mask_PW[:, : column + 1].index_select(0, prompt_U)
    for layer, keys, values in zip(layers, beginnings.keys, beginnings.values, strict=True):
        heads, value = layer.heads(x_Ud)
        queries, key = rotated(heads, cos_UD, sin_UD).split([model.heads, model.key_heads], 1)
        keys[:count, ..., column], values[:count, :, column] = key, value
        attended = _attended(queries, keys[:count, ..., : column + 1], values[:count, :, : column + 1], mask_UW)
        x_Ud = layer.close(x_Ud, attended)
    beginnings.columns, beginnings.written = column + 1, beginnings.written + 1
    return x_Ud


def _attended(queries_UHD: Tensor, keys: Tensor, values: Tensor, mask_UW: Tensor | None) -> Tensor:
    """(U, H * D). H / K queries ask each head of keys in one product."""
    rows, key_heads, width = keys.shape[:3]
    queries = queries_UHD.reshape(rows * key_heads, -1, width)
    scores = torch.bmm(queries, keys.flatten(0, 1)) * width**-0.5
    if mask_UW is not None:
        scores = (scores.unflatten(0, (rows, key_heads)) + mask_UW[:, None, None]).flatten(0, 1)
    shares = functional.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)
    return torch.bmm(shares, values.flatten(0, 1)).reshape(rows, -1)
