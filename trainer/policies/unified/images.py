"""Images drawn token by token, after a plan in text where one is asked for, and how likely both are under the present weights.

Axes: P prompts, G group, B = P * G images, N tokens of an image, S tokens of a plan and an image, C codes, V vocabulary, M tokens of
all images, R rows, a branch of an image each: all conditional ones, then all unconditional ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from machine.transfers import sent
from trainer.policies.tokens.draw import Answer, Reading
from trainer.policies.tokens.llama.decode import Choose
from trainer.policies.tokens.llama.drawer import on_the_cpu
from trainer.policies.tokens.llama.layout import is_cut
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.unified.branches import Branch, draw, hidden_states
from trainer.policies.unified.draw import Drawing, ImageModel, ImagePlan, PlanModel
from trainer.policies.unified.trace import ImageTrace
from trainer.samplers.guidance import guided_logits
from trainer.samplers.tokens import draw_tokens, log_probs, uniforms
from trainer.types import Prompt, Rollout, Sample

_NOTHING = torch.empty(0, dtype=torch.int64)
# So many logits of a branch are held at a time: 128 MiB in float32. Of a real codebook's 16,384 codes that is 2,048 tokens.
MOST_LOGITS = 2**25


@dataclass(frozen=True)
class Planner:
    """Who writes a plan in text before an image is drawn: `texts` writes it, `model` reads the prompt for it and goes on from it."""

    texts: TokenPolicy
    model: PlanModel


class ImagePolicy:
    """Draws and scores the image tokens of any `ImageModel`.

    Args:
        planner: writes the plans; None for a model that draws at once, always.
        most_logits: how many logits of a branch are held at a time while tokens are scored.
    """

    def __init__(self, model: ImageModel, planner: Planner | None = None, *, most_logits: int = MOST_LOGITS) -> None:
        self.model, self._given_planner, self._most_logits = model, planner, most_logits

    @property
    def planner(self) -> Planner:
        """Raises ValueError where the model writes no plans."""
        if self._given_planner is None:
            raise ValueError(f"{type(self.model).__name__} writes no plans; leave think out of the plan of its images")
        return self._given_planner

    @torch.no_grad()
    def sample(
        self, prompts_P: Sequence[Prompt], group_size: int, seeds_B: Sequence[int], plan: ImagePlan
    ) -> Iterator[Rollout]:
        """As `trainer.policies.base.Samples.sample`."""
        rows = [(p, g) for p in range(len(prompts_P)) for g in range(group_size)]
        for first in range(0, len(rows), plan.micro_batch_size):
            chunk = rows[first : first + plan.micro_batch_size]
            seeds = seeds_B[first : first + len(chunk)]
            drawings_B, thoughts_B = self._read(prompts_P, chunk, seeds, plan)
            tokens_BN, logp_BN = self._draw(drawings_B, seeds, plan)
            trace = ImageTrace(drawings_B, tokens_BN, plan, thoughts_B)
            yield self._rollout(prompts_P, chunk, trace, logp_BN)

    def logp(self, network: nn.Module, trace: ImageTrace) -> Tensor:
        """(B, S) float32, differentiable: of each drawn token given all before it, by the distribution that `plan.score` names.
        Those of a row's plan come first, then those of its image; 0 behind its end.

        Args:
            network: the model's own, or a copy of it with other weights.
        """
        model, plan, tokens_BN = self.model, trace.plan, trace.tokens_BN
        count, num = tokens_BN.shape
        given = list(zip(trace.drawings_B, tokens_BN, strict=True))
        rows = [Branch(each.cond_T[: each.shared], each.cond_T[each.shared :], tokens_N) for each, tokens_N in given]
        if plan.guidance_scale != 1 and plan.score == "guided":
            rows += [Branch(each.uncond_T, _NOTHING, tokens_N) for each, tokens_N in given]
        with model.computing():
            hidden = hidden_states(model, network, rows).split([row.predicted for row in rows])
            branches = [torch.cat([each[-num:] for each in hidden[i : i + count]]) for i in range(0, len(rows), count)]
            token_M = sent(tokens_BN.flatten(), model.device)
            logp_BN = self._scored(network, branches, token_M, plan).unflatten(0, (count, num))
            if not trace.thoughts_B:
                return logp_BN
            written = self._written(network, hidden[:count], trace)
        return pad_sequence([torch.cat(each) for each in zip(written, logp_BN, strict=True)], batch_first=True)

    def _written(self, network: nn.Module, hidden: Sequence[Tensor], trace: ImageTrace) -> Sequence[Tensor]:
        """Log-probabilities of the tokens of each plan, by the distribution that they were drawn from."""
        assert trace.plan.think is not None, "plans were asked for"
        tokens = [each.tokens_S for each in trace.thoughts_B]
        lengths = [len(each) for each in tokens]
        # The first of the hidden states behind a prompt predict its plan, with its end where it has one.
        of_plans = torch.cat([each[:length] for each, length in zip(hidden, lengths, strict=True)])
        temperature = trace.plan.think.writing.temperature or 1.0
        kept = [each.kept_SV for each in trace.thoughts_B if each.kept_SV is not None]

        def scored(hidden_Md: Tensor, token_M: Tensor, *kept_MV: Tensor) -> Tensor:
            logits_MV = self.planner.model.text_logits(network, hidden_Md) / temperature
            return _picked(log_probs(logits_MV, kept_MV[0] if kept_MV else None), token_M)

        given = [sent(torch.cat(each), of_plans.device) for each in (tokens, kept) if each]
        return self._in_parts(network, scored, self.planner.model.num_words, of_plans, *given).split(lengths)

    def _read(
        self, prompts_P: Sequence[Prompt], chunk: Sequence[tuple[int, int]], seeds: Sequence[int], plan: ImagePlan
    ) -> tuple[list[Drawing], list[Answer]]:
        """What each image of a micro-batch is drawn from, and the plans that were written for it."""
        model, prompts = self.model, dict.fromkeys(p for p, _ in chunk)
        if plan.think is None:
            drawings = {p: model.read_drawing(prompts_P[p]) for p in prompts}
            return [drawings[p] for p, _ in chunk], []
        planner = self.planner
        readings: Mapping[int, Reading] = {
            p: planner.model.read_thinking(prompts_P[p], plan.think.instruction) for p in prompts
        }
        thoughts = planner.texts.write(chunk, readings, seeds, plan.think.writing)
        plans = [each.tokens_S[:-1] if each.finished else each.tokens_S for each in thoughts]
        return [
            planner.model.drawing_after(readings[p], each) for (p, _), each in zip(chunk, plans, strict=True)
        ], thoughts

    def _rollout(
        self, prompts_P: Sequence[Prompt], chunk: Sequence[tuple[int, int]], trace: ImageTrace, logp_BN: Tensor
    ) -> Rollout:
        images, thoughts, think = self.model.decode_images(trace.tokens_BN), trace.thoughts_B, trace.plan.think
        samples = [
            Sample(f"{prompts_P[p].id}#{g}", prompts_P[p].id, prompts_P[p], images=(image,))
            for (p, g), image in zip(chunk, images, strict=True)
        ]
        mask_BS = scale_BS = None
        logp_BS = logp_BN
        if think is not None:
            samples = [
                replace(
                    sample,
                    text=self.planner.texts.model.decode(thought.tokens_S),
                    tokens=tuple(thought.tokens_S.tolist()),
                    finished=thought.finished,
                )
                for sample, thought in zip(samples, thoughts, strict=True)
            ]
            rows = [torch.cat([thought.logp_S, logp_N]) for thought, logp_N in zip(thoughts, logp_BN, strict=True)]
            logp_BS = pad_sequence(rows, batch_first=True)
            mask_BS = pad_sequence([torch.ones_like(each, dtype=torch.bool) for each in rows], batch_first=True)
            scale_BS = torch.full_like(logp_BS, think.image_weight)
            for row, thought in enumerate(thoughts):
                scale_BS[row, : len(thought.tokens_S)] = think.plan_weight
        return Rollout(
            samples=samples,
            group_B=torch.tensor([p for p, _ in chunk]),
            logp_BS=logp_BS,
            mask_BS=mask_BS,
            trace=trace,
            resized=True,  # drawn one by one and read at once differ in the last bits
            scale_BS=scale_BS,
        )

    def _scored(self, network: nn.Module, branches: Sequence[Tensor], token_M: Tensor, plan: ImagePlan) -> Tensor:
        """Log-probabilities (M,) float32 of image tokens, of the hidden states (M, d) of one branch or of both."""

        def scored(*given: Tensor) -> Tensor:
            *branches, tokens = given
            logits = [self.model.image_logits(network, hidden) for hidden in branches]
            guided = guided_logits(logits[0], logits[1], plan.guidance_scale) if len(logits) == 2 else logits[0].float()
            return _picked(log_probs(guided / (plan.temperature or 1.0), None), tokens)

        return self._in_parts(network, scored, self.model.num_codes, *branches, token_M)

    def _in_parts(self, network: nn.Module, scored: Callable[..., Tensor], width: int, *given: Tensor) -> Tensor:
        """`scored` of so many tokens at a time that their logits, `width` a token, are few enough.

        The backward pass computes the logits of each part again: kept, those of eight images of 576 tokens among 16,384 codes would
        be some 2 GB.
        """
        size = max(self._most_logits // width, 1)
        # Where every call gathers weights from all ranks (ZeRO-3), these must make equally many, and may have other numbers of tokens.
        if len(given[0]) <= size or is_cut(network):
            return scored(*given)
        parts = zip(*(each.split(size) for each in given), strict=True)
        return torch.cat([checkpoint(scored, *each, use_reentrant=False) for each in parts])

    def _draw(self, drawings_B: Sequence[Drawing], seeds_B: Sequence[int], plan: ImagePlan) -> tuple[Tensor, Tensor]:
        """Tokens (B, N) and their log-probabilities (B, N), both on the CPU; both branches run as one batch."""
        # A plan is written with a seed's first numbers, and its image drawn with those behind them.
        used, num = 0 if plan.think is None else plan.think.writing.max_new_tokens, self.model.num_image_tokens
        uniform_BN = uniforms(seeds_B, used + num)[:, used:] if plan.temperature else None
        prompts = [each.cond_T for each in drawings_B]
        if plan.guidance_scale != 1:
            prompts += [each.uncond_T for each in drawings_B]
        with self.model.computing():
            found = draw(self.model, prompts, self._chooser(len(drawings_B), uniform_BN, plan))
        # Rows of the unconditional branch, which come last, go on with the same tokens.
        tokens, logps = zip(
            *((of[: len(drawings_B)], logp[: len(drawings_B)]) for of, logp in on_the_cpu(found)), strict=True
        )
        return torch.stack(tokens, 1), torch.stack(logps, 1)

    def _chooser(self, count: int, uniform_BN: Tensor | None, plan: ImagePlan) -> Choose:
        """Draws a token for each of `count` images of the hidden states of their branches, which all go on with it."""
        model, guided, nothing = self.model, plan.guidance_scale != 1, sent(_NOTHING, self.model.device)
        uniform_BN = None if uniform_BN is None else sent(uniform_BN, model.device)

        def choose(hidden_Rd: Tensor, number: int, rows_R: Tensor) -> tuple[Tensor, Tensor, None]:
            logits_RC = model.image_logits(model.network, hidden_Rd).float()
            cond_BC, uncond_BC = logits_RC[:count], logits_RC[-count:]
            token_B, logp_B, _ = draw_tokens(
                guided_logits(cond_BC, uncond_BC, plan.guidance_scale) if guided else cond_BC,
                None if uniform_BN is None else uniform_BN[:, number],
                banned_N=nothing,
                temperature=plan.temperature,
                top_p=1.0,
                top_k=0,
            )
            if guided and plan.score == "conditional":
                logp_B = _picked(log_probs(cond_BC / (plan.temperature or 1.0), None), token_B)
            branches = len(rows_R) // count
            return token_B.repeat(branches), logp_B.repeat(branches), None

        return choose


def _picked(logp_MC: Tensor, token_M: Tensor) -> Tensor:
    return logp_MC.gather(-1, token_M[:, None])[:, 0]
