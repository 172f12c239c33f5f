"""The distribution that a token is drawn from, and the drawing. Axes: B rows, S tokens of an answer, V vocabulary.

What is drawn and what is scored are one distribution: first what can never be written is taken out, then logits are divided by
the temperature, then only the `top_k` likeliest are kept, then of these only the likeliest that have the share `top_p`
together; what is kept is normalised anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from machine.transfers import sent


def uniforms(seeds_B: Sequence[int], length: int) -> Tensor:
    """(B, length) float64 in [0, 1): what each row's tokens are drawn with. A row's numbers follow from its seed alone, and
    the first of them are the same whatever `length` is."""
    rows = []
    for seed in seeds_B:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(length, generator=generator, dtype=torch.float64))
    return torch.stack(rows) if rows else torch.zeros(0, length, dtype=torch.float64)


def allowed_logits(logits_BV: Tensor, banned_N: Tensor) -> Tensor:
    """Float32 logits with minus infinity at the ids `banned_N`, which can then be neither drawn nor scored."""
    return logits_BV.float().index_fill(-1, sent(banned_N, logits_BV.device), -torch.inf)


def kept_tokens(logits_BV: Tensor, *, top_p: float, top_k: int) -> Tensor | None:
    """Bool (B, V): which tokens can be drawn; None where all can.

    Args:
        logits_BV: divided by the temperature already; minus infinity where a token is banned.
        top_p: the share in (0, 1] that the likeliest tokens must reach together; the one that reaches it is kept, too.
        top_k: how many likeliest tokens are kept; 0 is all. Equal ones with the last of them are kept as well.
    """
    if top_p == 1 and not top_k:
        return None
    kept_BV = torch.ones_like(logits_BV, dtype=torch.bool)
    if top_k:
        least_B1 = logits_BV.topk(min(top_k, logits_BV.shape[-1]), dim=-1).values[..., -1:]
        kept_BV = logits_BV >= least_B1
    if top_p < 1:
        share_BV, order_BV = logits_BV.masked_fill(~kept_BV, -torch.inf).double().softmax(-1).sort(-1, descending=True)
        # A token stays where those before it have not reached the share yet, so the likeliest one always stays.
        before_BV = share_BV.cumsum(-1) - share_BV
        kept_BV &= torch.zeros_like(kept_BV).scatter(-1, order_BV, before_BV < top_p)
    return kept_BV


def log_probs(logits_BV: Tensor, kept_BV: Tensor | None) -> Tensor:
    """Log-probabilities of the distribution drawn from, minus infinity where a token cannot be drawn."""
    kept = logits_BV if kept_BV is None else logits_BV.masked_fill(~kept_BV, -torch.inf)
    return kept.log_softmax(-1)


def draw_tokens(
    logits_BV: Tensor, uniform_B: Tensor | None, *, banned_N: Tensor, temperature: float, top_p: float, top_k: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The next token of each row: ids (B,) int64, their log-probabilities (B,) float32, and what could be drawn.

    Args:
        uniform_B: of this position, see `uniforms`; None with a temperature of 0.
        banned_N: ids that can never be drawn.
        temperature: 0 takes the likeliest token, and its log-probability is that at temperature 1.
    """
    logits_BV = allowed_logits(logits_BV, banned_N)
    if not temperature:
        token_B = logits_BV.argmax(-1)
        return token_B, logits_BV.log_softmax(-1).gather(-1, token_B[:, None])[:, 0], None
    assert uniform_B is not None, "a temperature above 0 draws"
    logits_BV = logits_BV / temperature
    kept_BV = kept_tokens(logits_BV, top_p=top_p, top_k=top_k)
    logp_BV = log_probs(logits_BV, kept_BV)
    # The inverse of the distribution function, in float64: the sum of 150,000 float32 shares may end short of the uniform.
    # The first place whose sum is above u * total has a share above 0, so no banned token is met.
    below_BV = logp_BV.double().exp().cumsum(-1)
    reached_B1 = sent(uniform_B, logits_BV.device)[:, None] * below_BV[:, -1:]
    token_B = torch.searchsorted(below_BV, reached_B1, right=True)[:, 0].clamp(max=logits_BV.shape[-1] - 1)
    return token_B, logp_BV.gather(-1, token_B[:, None])[:, 0], kept_BV
