"""Writing with the native model: prompts are read once, then a token at a time with a cache. Axes: P prompts, B rows, S tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from machine.transfers import numbers, sent
from trainer.policies.tokens.draw import Answer, Reading, TokenPlan
from trainer.policies.tokens.llama.decode import Drawn
from trainer.policies.tokens.llama.drawer import answers_of
from trainer.policies.tokens.llama.layout import is_cut
from trainer.policies.unified.neo.attending import Cache, attend_packs
from trainer.policies.unified.neo.layers import Attend
from trainer.policies.unified.neo.model import NeoModel
from trainer.policies.unified.neo.network import NeoInput
from trainer.policies.unified.neo.rows import packed
from trainer.samplers.tokens import draw_tokens, uniforms


class NeoDrawer:
    """Implements `trainer.policies.tokens.draw.Drawer`."""

    def __init__(self, model: NeoModel) -> None:
        self.model = model

    @torch.no_grad()
    def draw(
        self, readings_P: Sequence[Reading], group_size: int, seeds_B: Sequence[int], plan: TokenPlan
    ) -> list[Answer]:
        model, device = self.model, self.model.device
        ends = [*model.ends, *plan.stop_ids]
        banned_N = sent(model.banned_N, device)
        uniform_BS = sent(uniforms(seeds_B, plan.max_new_tokens), device) if plan.temperature else None
        prompt_B = sent(torch.arange(len(readings_P)).repeat_interleave(group_size), device)
        # Where weights are gathered in every call, all ranks make equally many: none stops before the others.
        may_stop = not is_cut(model.network)
        rows_B = torch.arange(len(prompt_B))
        rows_there_B = sent(rows_B, device)
        drawn: list[Drawn] = []
        with model.computing():
            logits, cache, time_B = self._read(readings_P, prompt_B, plan.max_new_tokens)
            while True:
                uniform_B = None if uniform_BS is None else uniform_BS[:, len(drawn)].index_select(0, rows_there_B)
                token_B, logp_B, kept_BV = draw_tokens(
                    logits,
                    uniform_B,
                    banned_N=banned_N,
                    temperature=plan.temperature,
                    top_p=plan.top_p,
                    top_k=plan.top_k,
                )
                drawn.append(Drawn(token_B, logp_B, kept_BV, rows_B))
                if len(drawn) == plan.max_new_tokens:
                    break
                if may_stop:
                    # To count the rows that have ended, the computer waits for the device.
                    left = torch.isin(token_B.cpu(), torch.tensor(ends), invert=True).nonzero()[:, 0]
                    if not len(left):
                        break
                    if len(left) < len(rows_B):
                        rows_B, left = rows_B.index_select(0, left), sent(left, device)
                        rows_there_B, time_B, token_B = (
                            each.index_select(0, left) for each in (rows_there_B, time_B, token_B)
                        )
                        cache.keep(left)
                logits = self._step(token_B, time_B + len(drawn) - 1, cache)
        return answers_of(drawn, len(prompt_B), ends)

    def _read(self, readings_P: Sequence[Reading], prompt_B: Tensor, more: int) -> tuple[Tensor, Cache, Tensor]:
        """Logits (B, V) of each row's first token, what the layers keep of the prompts, and each row's next time (B,)."""
        model, device = self.model, self.model.device
        rows = [model.row(reading) for reading in readings_P]
        given, layout = packed(rows, device)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        lengths = [len(row.ids_T) for row in rows]
        last_P = numbers(lengths, device).cumsum(0) - 1
        logits = model.network(given, _keeping(keys, values, attend_packs(layout, model.way)), last_P)
        cache = Cache.of(keys, values, lengths, prompt_B, more)
        next_P = sent(torch.stack([row.places_3T[0].max() for row in rows]), device) + 1
        return logits.index_select(0, prompt_B), cache, next_P.index_select(0, prompt_B)

    def _step(self, token_B: Tensor, time_B: Tensor, cache: Cache) -> Tensor:
        """Logits (B, V) behind one more token a row."""
        places_3B = torch.stack([time_B, torch.zeros_like(time_B), torch.zeros_like(time_B)])
        everything = torch.arange(len(token_B), device=token_B.device)
        logits: Tensor = self.model.network(NeoInput(token_B, places_3B), cache.attend(), everything)
        return logits


def _keeping(keys: list[Tensor], values: list[Tensor], attend: Attend) -> Attend:
    """As `attend`; each layer's keys and values are kept."""

    def attended(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.append(k)
        values.append(v)
        return attend(number, q, k, v)

    return attended
