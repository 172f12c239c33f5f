"""Images drawn token by token, and how likely they are under the present weights.

Axes: P prompts, G group, B = P * G images, N tokens of an image, T tokens of a prompt, W = T + N - 1 columns, C codes, d hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trainer.policies.unified.draw import Drawing, ImageModel, ImagePlan, Score
from trainer.samplers.guidance import guided_logits
from trainer.samplers.tokens import draw_tokens, log_probs, uniforms
from trainer.types import Prompt, Rollout, Sample

_NOTHING = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class ImageTrace:
    """B images with what was read before them.

    Attributes:
        drawings_B: the images of a group share one.
        tokens_BN: int64, on the CPU.
        guidance_scale, temperature, score: see `ImagePlan`.
    """

    drawings_B: Sequence[Drawing]
    tokens_BN: Tensor
    guidance_scale: float
    temperature: float
    score: Score

    def rows(self, rows: slice) -> Self:
        return type(self)(
            self.drawings_B[rows], self.tokens_BN[rows], self.guidance_scale, self.temperature, self.score
        )

    def join(self, others: Sequence[Self]) -> Self:
        traces = (self, *others)
        return type(self)(
            [drawing for each in traces for drawing in each.drawings_B],
            torch.cat([each.tokens_BN for each in traces]),
            self.guidance_scale,
            self.temperature,
            self.score,
        )


class ImagePolicy:
    """Draws and scores the image tokens of any `ImageModel`."""

    def __init__(self, model: ImageModel) -> None:
        self.model = model

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
                trace=ImageTrace(drawings_B, tokens_BN, plan.guidance_scale, plan.temperature, plan.score),
                resized=True,  # drawn one by one and read at once differ in the last bits
            )

    def logp(self, network: nn.Module, trace: ImageTrace) -> Tensor:
        """(B, N) float32, differentiable: of each drawn token given all before it, by the distribution that `score` names."""
        model, count = self.model, len(trace.drawings_B)
        with model.computing():
            cond_BNC = self._logits(network, [each.cond_T for each in trace.drawings_B], trace.tokens_BN)
            if trace.guidance_scale == 1 or trace.score == "conditional":
                logits_BNC = cond_BNC.float()
            else:
                uncond_BNC = self._logits(network, [each.uncond_T for each in trace.drawings_B], trace.tokens_BN)
                logits_BNC = guided_logits(cond_BNC, uncond_BNC, trace.guidance_scale)
        logp_BNC = log_probs(logits_BNC / (trace.temperature or 1.0), None)
        picked_BN: Tensor = logp_BNC.gather(-1, trace.tokens_BN.to(logp_BNC.device)[..., None])[..., 0]
        assert picked_BN.shape == (count, trace.tokens_BN.shape[1])
        return picked_BN

    def _logits(self, network: nn.Module, prompts: Sequence[Tensor], tokens_BN: Tensor) -> Tensor:
        """(B, N, C): of each image token, by one pass over prompts and the tokens before it."""
        model, device = self.model, self.model.device
        images_BNd = model.embed_image(network, tokens_BN[:, :-1].to(device))
        rows = [
            torch.cat([model.embed_text(network, ids_T.to(device)), image_Nd])
            for ids_T, image_Nd in zip(prompts, images_BNd, strict=True)
        ]
        x_BWd = pad_sequence(rows, batch_first=True)  # on the right, where no token that counts looks
        hidden_BWd = _hidden(model.language_model(network)(inputs_embeds=x_BWd, use_cache=False))
        first_B1 = torch.tensor([len(ids_T) - 1 for ids_T in prompts], device=device)[:, None]
        places_BN = first_B1 + torch.arange(tokens_BN.shape[1], device=device)
        picked_BNd = hidden_BWd.gather(1, places_BN[..., None].expand(-1, -1, hidden_BWd.shape[-1]))
        return model.image_logits(network, picked_BNd)

    def _draw(self, drawings_B: Sequence[Drawing], seeds_B: Sequence[int], plan: ImagePlan) -> tuple[Tensor, Tensor]:
        """Tokens (B, N) and their log-probabilities (B, N), both on the CPU; both branches run as one batch."""
        from transformers import DynamicCache

        model, network, count = self.model, self.model.network, len(drawings_B)
        guided = plan.guidance_scale != 1
        ids = [each.cond_T for each in drawings_B] + ([each.uncond_T for each in drawings_B] if guided else [])
        width = max(len(each) for each in ids)
        padded = torch.stack([torch.cat([each.new_zeros(width - len(each)), each]) for each in ids]).to(model.device)
        mask = torch.stack([torch.arange(width) >= width - len(each) for each in ids]).long().to(model.device)
        uniform_BN = uniforms(seeds_B, model.num_image_tokens) if plan.temperature else None
        cache, found, logps = DynamicCache(), [], []
        with model.computing():
            x = model.embed_text(network, padded)
            for number in range(model.num_image_tokens):
                positions = (mask.cumsum(1) - 1)[:, -x.shape[1] :].clamp(min=0)
                hidden = _hidden(
                    model.language_model(network)(
                        inputs_embeds=x,
                        attention_mask=mask,
                        position_ids=positions,
                        past_key_values=cache,
                        use_cache=True,
                    )
                )
                logits = model.image_logits(network, hidden[:, -1])
                both = logits[:count].float(), logits[-count:].float()
                token_B, logp_B, _ = draw_tokens(
                    guided_logits(*both, plan.guidance_scale) if guided else both[0],
                    None if uniform_BN is None else uniform_BN[:, number],
                    banned_N=_NOTHING,
                    temperature=plan.temperature,
                    top_p=1.0,
                    top_k=0,
                )
                if guided and plan.score == "conditional":
                    own_BC = log_probs(both[0] / (plan.temperature or 1.0), None)
                    logp_B = own_BC.gather(-1, token_B[:, None])[:, 0]
                found.append(token_B)
                logps.append(logp_B)
                x = model.embed_image(network, token_B.repeat(2 if guided else 1))[:, None]
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        return torch.stack(found, 1).cpu(), torch.stack(logps, 1).cpu()


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output.last_hidden_state
    return hidden
