"""Writing with transformers' own `generate`: slow, and right for every model that transformers has.

What is drawn, is drawn here: a logits processor chooses each row's token by that row's own numbers and leaves no other to choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from machine.transfers import sent
from trainer.policies.tokens.draw import Answer, Reading, TokenPlan
from trainer.policies.tokens.llama.layout import is_cut
from trainer.policies.tokens.model import TokenModel
from trainer.samplers.tokens import draw_tokens, uniforms


class GenerateDrawer:
    """Implements `Drawer` for any model."""

    def __init__(self, model: TokenModel) -> None:
        self.model = model

    @torch.no_grad()
    def draw(
        self, readings_P: Sequence[Reading], group_size: int, seeds_B: Sequence[int], plan: TokenPlan
    ) -> list[Answer]:
        from transformers import LogitsProcessorList

        model = self.model
        readings_B = [reading for reading in readings_P for _ in range(group_size)]
        batch = model.collate(readings_B)
        chooser = _Chooser(model, seeds_B, plan)
        ends = [*model.ends, *plan.stop_ids]
        with model.computing():
            written_BW: Tensor = model.generate(
                **batch,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                max_new_tokens=plan.max_new_tokens,
                eos_token_id=ends,
                pad_token_id=model.pad_id,
                logits_processor=LogitsProcessorList([chooser]),
                # Where weights are gathered in every forward pass, all ranks make equally many.
                synced_gpus=is_cut(model.network),
            )
        tokens_BS = written_BW[:, batch["input_ids"].shape[1] :].cpu()
        chooser.read()
        return [chooser.answer(row, tokens_S, ends) for row, tokens_S in enumerate(tokens_BS)]


class _Chooser:
    """A logits processor (`transformers.LogitsProcessor`) that draws."""

    def __init__(self, model: TokenModel, seeds_B: Sequence[int], plan: TokenPlan) -> None:
        self.plan, self.banned_N = plan, sent(model.banned_N, model.device)
        self.uniform_BS = sent(uniforms(seeds_B, plan.max_new_tokens), model.device) if plan.temperature else None
        self.logp: list[Tensor] = []
        self.kept: list[Tensor | None] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        plan, position = self.plan, len(self.logp)
        token_B, logp_B, kept_BV = draw_tokens(
            scores,
            None if self.uniform_BS is None else self.uniform_BS[:, position],
            banned_N=self.banned_N,
            temperature=plan.temperature,
            top_p=plan.top_p,
            top_k=plan.top_k,
        )
        self.logp.append(logp_B)  # read when all is drawn: reading waits for the device
        self.kept.append(kept_BV)
        return torch.full_like(scores, -torch.inf).scatter(-1, token_B[:, None], 0.0)

    def read(self) -> None:
        """Bring what was kept to the CPU."""
        if self.logp:
            self.logp = list(torch.stack(self.logp).cpu())
        self.kept = [None if each is None else each.cpu() for each in self.kept]

    def answer(self, row: int, tokens_S: Tensor, ends: Sequence[int]) -> Answer:
        """The row's answer, without what pads it behind its end."""
        is_end_S = torch.isin(tokens_S, torch.tensor(ends))
        finished = bool(is_end_S.any())
        length = int(is_end_S.int().argmax()) + 1 if finished else len(tokens_S)
        logp_S = torch.stack([logp_B[row] for logp_B in self.logp[:length]])
        kept = [each[row] for each in self.kept[:length] if each is not None]
        return Answer(tokens_S[:length], logp_S, finished, torch.stack(kept) if kept else None)
