"""Implements `Drawer` on the fast loop. Axes: P prompts, G group, B = P * G rows, S tokens of an answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from machine.transfers import sent
from trainer.policies.tokens.draw import Answer, Reading, TokenPlan
from trainer.policies.tokens.generate import GenerateDrawer
from trainer.policies.tokens.llama.decode import Drawn, decode
from trainer.policies.tokens.llama.inputs import prefix_of
from trainer.policies.tokens.llama.layers import fused_layers
from trainer.policies.tokens.llama.layout import text_model
from trainer.policies.tokens.model import TokenModel
from trainer.samplers.tokens import draw_tokens, uniforms


class LlamaDrawer:
    """Writes with a model whose layers are Llama's (`layout.supports`)."""

    def __init__(self, model: TokenModel) -> None:
        self.model = model

    @torch.no_grad()
    def draw(
        self, readings_P: Sequence[Reading], group_size: int, seeds_B: Sequence[int], plan: TokenPlan
    ) -> list[Answer]:
        model, text = self.model, text_model(self.model.network)
        if hasattr(
            text.weight, "ds_id"
        ):  # each rank holds a part of every weight, which only the model's own calls gather
            return GenerateDrawer(model).draw(readings_P, group_size, seeds_B, plan)
        ends = [*model.ends, *plan.stop_ids]
        banned_N = sent(model.banned_N, model.device)
        uniform_BS = sent(uniforms(seeds_B, plan.max_new_tokens), model.device) if plan.temperature else None

        def choose(hidden_Bd: Tensor, number: int, rows_B: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            return draw_tokens(
                text.head(hidden_Bd),
                None if uniform_BS is None else uniform_BS[:, number].index_select(0, rows_B),
                banned_N=banned_N,
                temperature=plan.temperature,
                top_p=plan.top_p,
                top_k=plan.top_k,
            )

        prompt_B = torch.arange(len(readings_P)).repeat_interleave(group_size)
        with model.computing():
            prefix, embed = prefix_of(model, text, readings_P), text.text.embed_tokens
            drawn = decode(text, fused_layers(text), prefix, prompt_B, choose, embed, ends, plan.max_new_tokens)
        return answers_of(drawn, len(prompt_B), ends)


def answers_of(drawn: Sequence[Drawn], rows: int, ends: Sequence[int]) -> list[Answer]:
    """What was drawn, a position at a time, as one answer a row, each up to its end."""
    tokens_BS, logp_BS = torch.zeros(rows, len(drawn), dtype=torch.int64), torch.zeros(rows, len(drawn))
    for number, (each, (token_B, logp_B)) in enumerate(zip(drawn, on_the_cpu(drawn), strict=True)):
        tokens_BS[each.rows_B, number], logp_BS[each.rows_B, number] = token_B, logp_B
    # A row that has ended is in no later position; what stands behind its end means nothing.
    is_end_BS = torch.isin(tokens_BS, torch.tensor(ends))
    # A place stays where no end has come before it.
    length_B = ((is_end_BS.int().cumsum(1) - is_end_BS.int()) == 0).sum(1)
    finished_B = is_end_BS.gather(1, length_B[:, None] - 1)[:, 0]
    kept = [None if each.kept_BV is None else each.kept_BV.cpu() for each in drawn]
    return [
        Answer(tokens_BS[row, :length], logp_BS[row, :length], finished, _kept(drawn[:length], kept, row))
        for row, (length, finished) in enumerate(zip(length_B.tolist(), finished_B.tolist(), strict=True))
    ]


def on_the_cpu(drawn: Sequence[Drawn]) -> list[tuple[Tensor, Tensor]]:
    """Ids and log-probabilities of each position, for which the device is waited for once: float64 holds both as they are."""
    both = torch.cat([torch.stack([each.token_B.double(), each.logp_B.double()]) for each in drawn], 1).cpu()
    return [(of.long(), logp.float()) for of, logp in both.split([len(each.token_B) for each in drawn], 1)]


def _kept(drawn: Sequence[Drawn], kept: Sequence[Tensor | None], row: int) -> Tensor | None:
    """Bool (S, V): what the row could draw at each of its positions."""
    if kept[0] is None:
        return None
    found = []
    for each, kept_BV in zip(drawn, kept, strict=False):
        assert kept_BV is not None, "what filters one position filters all"
        found.append(kept_BV[each.rows_B == row][0])
    return torch.stack(found)
