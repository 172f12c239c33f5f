"""Drawing knows no Janus: a plain Llama whose vocabulary holds words and codes draws, is scored, and learns to draw what is rewarded.

Axes: B images, N tokens of an image, T tokens of a prompt, C codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.repeated_indexes import adds_in_order
from trainer.objectives.base import Scored
from trainer.objectives.tokens.policy import TokenLoss
from trainer.objectives.tokens.policy import TokenPolicy as TokenObjective
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.unified import branches
from trainer.policies.unified.draw import Drawing, ImageModel, ImagePlan, Thinking
from trainer.policies.unified.images import ImagePolicy
from trainer.types import Prompt, Replay, Rollout

WORDS, CODES, TAG, PAD = 12, 6, 10, 11


class OneVocabulary:
    """Implements `ImageModel`: ids below WORDS are words, the CODES above them are colours of a 2 x 2 image."""

    num_image_tokens, num_codes, recomputes_layers = 4, CODES, False

    def __init__(self) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        size: Any = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        made: Any = LlamaForCausalLM
        self.network: nn.Module = made(LlamaConfig(vocab_size=WORDS + CODES, **size)).eval()
        self.device = torch.device("cpu")

    def computing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def read_drawing(self, prompt: Prompt) -> Drawing:
        ids_T = torch.tensor([*(int(word) for word in prompt.text.split()), TAG])
        return Drawing(ids_T, torch.tensor([*[PAD] * (len(ids_T) - 1), TAG]), len(ids_T))

    def language_model(self, network: Any) -> nn.Module:
        found: nn.Module = network.model
        return found

    def embed_text(self, network: Any, ids: Tensor) -> Tensor:
        embedded: Tensor = network.model.embed_tokens(ids)
        return embedded

    def embed_image(self, network: Any, ids: Tensor) -> Tensor:
        return self.embed_text(network, ids + WORDS)

    def image_logits(self, network: Any, hidden: Tensor) -> Tensor:
        logits: Tensor = network.lm_head(hidden)
        return logits[..., WORDS:]

    def decode_images(self, tokens_BN: Tensor) -> Sequence[np.ndarray]:
        grey = (tokens_BN * 40).to(torch.uint8).view(-1, 2, 2, 1).expand(-1, -1, -1, 3)
        return list(grey.numpy())


class Drawing2x2:
    """The part of a policy that an objective on images needs."""

    def __init__(self, model: ImageModel) -> None:
        self.images = ImagePolicy(model)

    def parts(self, rollout: Rollout) -> list[slice]:
        return [slice(0, rollout.logp_BS.shape[1])]

    def replay(self, rollout: Rollout, part: slice, *, reference: bool = False) -> Replay:
        trace: Any = rollout.trace
        return Replay(self.images.logp(self.images.model.network, trace))


@pytest.fixture(scope="module")
def model() -> OneVocabulary:
    return OneVocabulary()


PROMPTS = [Prompt("a", "1 2 3"), Prompt("b", "4"), Prompt("c", "5 6")]


def test_both_ways_draw_and_score_the_same(model: OneVocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, plan = ImagePolicy(model), ImagePlan(8, guidance_scale=3.0)
    (fast, more) = policy.sample(PROMPTS, 4, range(12), plan)
    assert (len(fast), len(more)) == (8, 4)
    trace: Any = fast.trace
    monkeypatch.setattr(branches, "supports", lambda network: "said by the test")
    slow, _ = policy.sample(PROMPTS, 4, range(12), plan)
    other: Any = slow.trace
    assert torch.equal(trace.tokens_BN, other.tokens_BN)
    torch.testing.assert_close(policy.logp(model.network, trace).detach(), fast.logp_BS, atol=1e-5, rtol=0)
    assert fast.samples[0].images[0].shape == (2, 2, 3)


def test_it_learns_to_draw_what_is_rewarded() -> None:
    """Dark for one prompt, bright for another: the share of a picture's wish rises from chance."""
    model = OneVocabulary()
    policy: Any = Drawing2x2(model)
    objective = TokenObjective(policy, TokenLoss("dr_grpo", longest=1), micro_batch_size=None)
    optimizer = torch.optim.Adam(model.network.parameters(), lr=5e-3)
    plan, prompts, rewards = ImagePlan(64, guidance_scale=1.5), [Prompt("dark", "1 2"), Prompt("bright", "3 4")], []
    for step in range(25):
        (rollout,) = policy.images.sample(prompts, 16, range(step * 32, step * 32 + 32), plan)
        trace: Any = rollout.trace
        bright_B = (trace.tokens_BN >= CODES // 2).float().mean(1)
        score_B = torch.where(rollout.group_B == 1, bright_B, 1 - bright_B)
        mean_B = torch.stack([score_B[:16].mean(), score_B[16:].mean()]).repeat_interleave(16)
        rewards.append(score_B.mean().item())
        (batch,) = objective.batches(Scored([rollout], score_B - mean_B, torch.ones(32)), step)
        terms, _ = objective.terms(batch, 0)
        optimizer.zero_grad()
        with adds_in_order():
            (terms[0].sum / objective.counts(batch)["tokens"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert rewards[0] < 0.65 and sum(rewards[-3:]) / 3 > 0.9


def test_a_model_that_writes_no_plans_is_not_asked_for_any() -> None:
    """One that draws at once needs nothing of what writes; asked to think first, it says which setting asks for that."""
    think = Thinking(TokenPlan(2, 3))
    with pytest.raises(ValueError, match="writes no plans; leave think out"):
        next(ImagePolicy(OneVocabulary()).sample([Prompt("a", "1")], 2, [1, 2], ImagePlan(2, think=think)))
