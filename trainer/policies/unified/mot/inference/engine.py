"""Reads contexts once, then draws or writes after them.

Axes: B rows, N latent tokens of an image, C numbers of a latent token, U words, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from machine.transfers import numbers, sent
from trainer.policies.lora import autocast
from trainer.policies.tokens.draw import Answer, TokenPlan
from trainer.policies.tokens.llama.decode import Drawn
from trainer.policies.tokens.llama.drawer import answers_of
from trainer.policies.tokens.llama.layout import is_cut
from trainer.policies.unified.mot.geometry import COLOURS
from trainer.policies.unified.mot.inference.cache import Cache, Keeping, OnCanvas, Writing
from trainer.policies.unified.mot.lay import LaidRow
from trainer.policies.unified.mot.model import MotModel
from trainer.policies.unified.mot.network import Tokens
from trainer.policies.unified.mot.pack import pack_rows
from trainer.policies.unified.mot.vision import places
from trainer.samplers.flow_sde import ode_step
from trainer.samplers.guidance import Guidance, guided_velocity
from trainer.samplers.tokens import draw_tokens, uniforms

_TAGS = 2  # around an image


@torch.no_grad()
def read(model: MotModel, rows: Sequence[LaidRow]) -> Cache:
    """What these contexts, without a canvas, leave behind in every layer."""
    given = pack_rows(rows, model.codec, model.network.geometry, model.device, model.way)
    keeping = Keeping(given.attends, [(len(row.und), row.num_latents) for row in rows])
    with autocast(model.config, model.device):
        model.network(given.tokens, keeping)
    return keeping.cache(numbers((row.position for row in rows), model.device))


class Canvas:
    """An image of each row, to be drawn.

    Args:
        size: its latent tokens, rows and columns.
    """

    def __init__(self, model: MotModel, cache: Cache, size: tuple[int, int]) -> None:
        self._model, self._num = model, size[0] * size[1]
        count, device = len(cache), model.device
        geometry = model.network.geometry
        tags = numbers([model.words.image_start, model.words.image_end], device)
        where = sent(places(*size, geometry.max_latent_size, spread=geometry.interpolated), device)
        self._attends = OnCanvas(cache, _TAGS, self._num)
        self._tokens = replace(
            no_tokens(model),
            words_T=tags.repeat(count),
            order_U=torch.arange(_TAGS * count, device=device),
            positions_U=cache.position_B.repeat_interleave(_TAGS),
            latent_places_G=where.repeat(count),
            image_G=torch.arange(count, device=device).repeat_interleave(self._num),
            positions_G=cache.position_B.repeat_interleave(self._num),
        )

    def velocity(self, x_BNC: Tensor, sigma: float) -> Tensor:
        """v (B, N, C), float32, at one noise level."""
        levels_I = torch.full((len(x_BNC),), sigma, device=x_BNC.device)
        tokens = replace(self._tokens, latents=x_BNC.flatten(0, 1), levels_I=levels_I)
        with autocast(self._model.config, self._model.device):
            _, gen = self._model.network(tokens, self._attends)
            return self._model.network.velocity(gen).unflatten(0, (-1, self._num))


@torch.no_grad()
def draw(
    model: MotModel,
    branches: Sequence[Sequence[LaidRow]],
    size: tuple[int, int],
    noise_BNC: Tensor,
    schedule: Sequence[float],
    guidance: Guidance,
) -> Tensor:
    """Clean latent tokens (B, N, C), float32, by Euler's steps along the schedule.

    Args:
        branches: the contexts of all rows; then, where there is guidance, those without texts; then those without images. Either of
            the last two may be left out, by the guidance's numbers that are 1.
        size: latent tokens of each image, rows and columns.
        schedule: noise levels, falling from 1 to 0.
    """
    cache = read(model, [row for branch in branches for row in branch])
    whole, alone = Canvas(model, cache, size), Canvas(model, cache.first(len(noise_BNC)), size)
    x = sent(noise_BNC, model.device)
    for sigma, sigma_next in pairwise(schedule):
        now = guidance.at(sigma)
        if len(branches) == 1 or now.text == now.image == 1:
            v = alone.velocity(x, sigma)
        else:
            cond, *others = whole.velocity(x.repeat(len(branches), 1, 1), sigma).chunk(len(branches))
            no_text = others.pop(0) if guidance.text != 1 else None
            v = guided_velocity(cond, no_text, others[0] if others else None, now)
        x = ode_step(x, v, sigma, sigma_next)
    return x


@torch.no_grad()
def write(model: MotModel, cache: Cache, seeds_B: Sequence[int], plan: TokenPlan) -> list[Answer]:
    """A text after each context, its tokens with the tag that ends it."""
    words, device = model.words, model.device
    attends, ends = Writing(cache), [words.end, *plan.stop_ids]
    ends_E = numbers(ends, device)
    uniform_BS = sent(uniforms(seeds_B, plan.max_new_tokens), device) if plan.temperature else None
    rows_B, banned_N = torch.arange(len(cache), device=device), sent(banned(model), device)
    token_B, has_ended_B = torch.full_like(rows_B, words.start), torch.zeros_like(rows_B, dtype=torch.bool)
    nothing = replace(no_tokens(model), order_U=rows_B)
    drawn: list[Drawn] = []
    # Where weights are gathered in every call, all ranks make equally many: none stops before the others.
    may_stop = not is_cut(model.network)
    while len(drawn) < plan.max_new_tokens and not (drawn and may_stop and has_ended_B.all()):
        attends.next()
        with autocast(model.config, device):
            tokens = replace(nothing, words_T=token_B, positions_U=cache.position_B + len(drawn))
            logits_BV = model.network.logits(model.network(tokens, attends)[0])
        token_B, logp_B, kept_BV = draw_tokens(
            logits_BV,
            None if uniform_BS is None else uniform_BS[:, len(drawn)],
            banned_N=banned_N,
            temperature=plan.temperature,
            top_p=plan.top_p,
            top_k=plan.top_k,
        )
        drawn.append(Drawn(token_B, logp_B, kept_BV, torch.arange(len(cache))))
        has_ended_B = has_ended_B | torch.isin(token_B, ends_E)
    return answers_of(drawn, len(cache), ends)


def banned(model: MotModel) -> Tensor:
    """Ids that no text may hold: the tags but its end, and rows of the head that stand for no word."""
    words = model.words
    vocabulary = model.network.geometry.language.vocab_size
    return torch.tensor([words.start, words.image_start, words.image_end, *range(len(words), vocabulary)])


def no_tokens(model: MotModel) -> Tokens:
    """Nothing of either kind."""
    geometry, device = model.network.geometry, model.device
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Tokens(
        words_T=none,
        patches=torch.zeros(0, geometry.vision.patch_size**2 * COLOURS, device=device),
        patch_places_V=none,
        patch_lengths=(),
        order_U=none,
        positions_U=none,
        latents=torch.zeros(0, geometry.token_channels, device=device),
        latent_places_G=none,
        image_G=none,
        levels_I=torch.zeros(0, device=device),
        positions_G=none,
    )
