"""Images drawn token by token, and how likely they are under the present weights.

Axes: P prompts, G group, B = P * G images, N tokens of an image, C codes, M tokens of all images, R rows, a branch of an image each:
all conditional ones, then all unconditional ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.policies.tokens.llama.decode import Choose
from trainer.policies.unified.branches import Branch, draw, hidden_states
from trainer.policies.unified.draw import Drawing, ImageModel, ImagePlan
from trainer.policies.unified.trace import ImageTrace
from trainer.samplers.guidance import guided_logits
from trainer.samplers.tokens import draw_tokens, log_probs, uniforms
from trainer.types import Prompt, Rollout, Sample

_NOTHING = torch.empty(0, dtype=torch.int64)
# So many logits of a branch are held at a time: 128 MiB in float32. Of a real codebook's 16,384 codes that is 2,048 tokens.
_LOGITS = 2**25


class ImagePolicy:
    """Draws and scores the image tokens of any `ImageModel`.

    Args:
        most_logits: how many logits of a branch are held at a time while tokens are scored.
    """

    def __init__(self, model: ImageModel, *, most_logits: int = _LOGITS) -> None:
        self.model, self._most_logits = model, most_logits

    @torch.no_grad()
    def sample(
        self, prompts_P: Sequence[Prompt], group_size: int, seeds_B: Sequence[int], plan: ImagePlan
    ) -> Iterator[Rollout]:
        """As `trainer.policies.base.Samples.sample`."""
        rows = [(p, g) for p in range(len(prompts_P)) for g in range(group_size)]
        drawings = [self.model.read_drawing(prompt) for prompt in prompts_P]
        for first in range(0, len(rows), plan.micro_batch_size):
            chunk = rows[first : first + plan.micro_batch_size]
            drawings_B = [drawings[p] for p, _ in chunk]
            tokens_BN, logp_BN = self._draw(drawings_B, seeds_B[first : first + len(chunk)], plan)
            images = self.model.decode_images(tokens_BN)
            samples = [
                Sample(f"{prompts_P[p].id}#{g}", prompts_P[p].id, prompts_P[p], images=(image,))
                for (p, g), image in zip(chunk, images, strict=True)
            ]
            yield Rollout(
                samples=samples,
                group_B=torch.tensor([p for p, _ in chunk]),
                logp_BS=logp_BN,
                mask_BS=None,
                trace=ImageTrace(drawings_B, tokens_BN, plan),
                resized=True,  # drawn one by one and read at once differ in the last bits
            )

    def logp(self, network: nn.Module, trace: ImageTrace) -> Tensor:
        """(B, N) float32, differentiable: of each drawn token given all before it, by the distribution that `plan.score` names.

        Args:
            network: the model's own, or a copy of it with other weights.
        """
        model, plan, tokens_BN = self.model, trace.plan, trace.tokens_BN
        guided = plan.guidance_scale != 1 and plan.score == "guided"
        rows = [Branch(each.cond_T, _NOTHING, tokens) for each, tokens in zip(trace.drawings_B, tokens_BN, strict=True)]
        if guided:
            given = zip(trace.drawings_B, tokens_BN, strict=True)
            rows += [Branch(each.uncond_T, _NOTHING, tokens_N) for each, tokens_N in given]
        with model.computing():
            hidden = hidden_states(model, network, rows)
            cond_Md, uncond_Md = hidden.chunk(2) if guided else (hidden, None)
            logp_M = self._scored(network, cond_Md, uncond_Md, tokens_BN.flatten().to(model.device), plan)
        return logp_M.unflatten(0, tokens_BN.shape)

    def _scored(
        self, network: nn.Module, cond_Md: Tensor, uncond_Md: Tensor | None, token_M: Tensor, plan: ImagePlan
    ) -> Tensor:
        """Log-probabilities (M,) float32 of tokens, so many of them at a time that their logits are few enough.

        The backward pass computes the logits of each part again: kept, those of eight images of 576 tokens among 16,384 codes would
        be some 2 GB.
        """

        def scored(cond: Tensor, uncond: Tensor | None, tokens: Tensor) -> Tensor:
            logits = self.model.image_logits(network, cond).float()
            if uncond is not None:
                logits = guided_logits(logits, self.model.image_logits(network, uncond), plan.guidance_scale)
            picked: Tensor = log_probs(logits / (plan.temperature or 1.0), None).gather(-1, tokens[:, None])[:, 0]
            return picked

        size = max(self._most_logits // self.model.num_codes, 1)
        if len(token_M) <= size:
            return scored(cond_Md, uncond_Md, token_M)
        conds, tokens = cond_Md.split(size), token_M.split(size)
        unconds = [None] * len(tokens) if uncond_Md is None else uncond_Md.split(size)
        parts = zip(conds, unconds, tokens, strict=True)
        return torch.cat([checkpoint(scored, *each, use_reentrant=False) for each in parts])

    def _draw(self, drawings_B: Sequence[Drawing], seeds_B: Sequence[int], plan: ImagePlan) -> tuple[Tensor, Tensor]:
        """Tokens (B, N) and their log-probabilities (B, N), both on the CPU; both branches run as one batch."""
        uniform_BN = uniforms(seeds_B, self.model.num_image_tokens) if plan.temperature else None
        prompts = [each.cond_T for each in drawings_B]
        if plan.guidance_scale != 1:
            prompts += [each.uncond_T for each in drawings_B]
        with self.model.computing():
            found = draw(self.model, prompts, self._chooser(len(drawings_B), uniform_BN, plan))
        tokens_BN = torch.stack([each.token_B[: len(drawings_B)] for each in found], 1)
        return tokens_BN.cpu(), torch.stack([each.logp_B[: len(drawings_B)] for each in found], 1).cpu()

    def _chooser(self, count: int, uniform_BN: Tensor | None, plan: ImagePlan) -> Choose:
        """Draws a token for each of `count` images of the hidden states of their branches, which all go on with it."""
        model, guided = self.model, plan.guidance_scale != 1
        uniform_BN = None if uniform_BN is None else uniform_BN.to(model.device)

        def choose(hidden_Rd: Tensor, number: int, rows_R: Tensor) -> tuple[Tensor, Tensor, None]:
            logits_RC = model.image_logits(model.network, hidden_Rd).float()
            cond_BC, uncond_BC = logits_RC[:count], logits_RC[-count:]
            token_B, logp_B, _ = draw_tokens(
                guided_logits(cond_BC, uncond_BC, plan.guidance_scale) if guided else cond_BC,
                None if uniform_BN is None else uniform_BN[:, number],
                banned_N=_NOTHING,
                temperature=plan.temperature,
                top_p=1.0,
                top_k=0,
            )
            if guided and plan.score == "conditional":
                own_BC = log_probs(cond_BC / (plan.temperature or 1.0), None)
                logp_B = own_BC.gather(-1, token_B[:, None])[:, 0]
            branches = len(rows_R) // count
            return token_B.repeat(branches), logp_B.repeat(branches), None

        return choose
