"""Guided tokens: the distribution that is drawn from is the one that is scored. Axes: B rows, C codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.samplers.guidance import guided_logits
from trainer.samplers.tokens import draw_tokens, log_probs, uniforms

DRAWS, CODES = 20_000, 8
# Of a chi-square with 7 degrees of freedom, 24.32 is exceeded once in a thousand.
BOUND = 24.32


def branches() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    cond_C, uncond_C = torch.randn(2, CODES, generator=generator).unbind(0)
    return cond_C, uncond_C


def chi_square(tokens: Tensor, logp_C: Tensor) -> float:
    """Sum of (seen - expected)^2 / expected over the codes."""
    seen_C, expected_C = torch.bincount(tokens, minlength=CODES).double(), logp_C.double().exp() * len(tokens)
    assert expected_C.min() > 5, "too few are expected of a code for the test to hold"
    return float(((seen_C - expected_C) ** 2 / expected_C).sum())


def test_guidance_by_hand() -> None:
    """u + w (c - u) (arXiv 2207.12598 eq. 6 with w = 1 + its own): c = (1, 0), u = (0.5, 2), w = 3 gives (2, -4)."""
    cond, uncond = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 2.0]])
    assert guided_logits(cond, uncond, 3.0).tolist() == [[2.0, -4.0]]
    assert guided_logits(cond, uncond, 1.0).tolist() == cond.tolist()
    assert guided_logits(cond, uncond, 0.0).tolist() == uncond.tolist()
    assert guided_logits(cond.bfloat16(), uncond.bfloat16(), 3.0).dtype == torch.float32


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_frequencies_are_those_of_the_distribution_that_is_scored(temperature: float) -> None:
    cond_C, uncond_C = branches()
    guided_C = guided_logits(cond_C, uncond_C, 1.5)
    token_B, logp_B, _ = draw_tokens(
        guided_C.expand(DRAWS, -1),
        uniforms(range(DRAWS), 1)[:, 0],
        banned_N=torch.empty(0, dtype=torch.int64),
        temperature=temperature,
        top_p=1.0,
        top_k=0,
    )
    scored_C = log_probs(guided_C / temperature, None)
    assert torch.equal(logp_B, scored_C[token_B])
    assert chi_square(token_B, scored_C) < BOUND
    assert chi_square(token_B, log_probs(cond_C / temperature, None)) > 10 * BOUND, (
        "the conditional branch alone is another"
    )
    other = 1.0 if temperature != 1 else 1.7
    assert chi_square(token_B, log_probs(guided_C / other, None)) > 10 * BOUND, "so is another temperature"
