"""Images are drawn and scored alike by both ways, a row alone as among others, and by the distribution that is drawn from.

Axes: B images, N tokens of an image, C codes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.config import JanusConfig, LoraConfig
from trainer.policies.tokens.llama.inputs import Prefix, embedded_prefix
from trainer.policies.unified import branches
from trainer.policies.unified.draw import ImagePlan
from trainer.policies.unified.images import ImagePolicy
from trainer.policies.unified.janus import build
from trainer.policies.unified.janus.model import JanusModel
from trainer.policies.unified.trace import ImageTrace
from trainer.types import Prompt, Rollout

GROUP = 3
PROMPTS = tuple(
    Prompt(f"p{n}", text, task="generate")
    for n, text in enumerate(["draw red disc", "draw the blue bar left", "draw", "draw a green ring"])
)
PLAN = ImagePlan(micro_batch_size=64, guidance_scale=2.5)
SEEDS = range(5, 5 + GROUP * len(PROMPTS))


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's own forward instead of layers by hand."""
    monkeypatch.setattr(branches, "supports", lambda network: "said by the test")


def drawn(model: JanusModel, plan: ImagePlan, prompts: Sequence[Prompt] = PROMPTS) -> Rollout:
    policy = ImagePolicy(model)
    (rollout,) = policy.sample(prompts, GROUP, list(SEEDS[: GROUP * len(prompts)]), plan)
    return rollout


def trace_of(rollout: Rollout) -> ImageTrace:
    assert isinstance(rollout.trace, ImageTrace)
    return rollout.trace


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        replace(PLAN, guidance_scale=1.0),
        replace(PLAN, temperature=0.0),
        replace(PLAN, temperature=1.6),
        replace(PLAN, score="conditional"),
    ],
    ids=["guided", "unguided", "greedy", "warm", "conditional"],
)
def test_both_ways_draw_and_score_the_same(janus: JanusModel, plan: ImagePlan, request: pytest.FixtureRequest) -> None:
    fast = drawn(janus, plan)
    fast_logp = ImagePolicy(janus).logp(janus.network, trace_of(fast))
    request.getfixturevalue("plainly")
    slow = drawn(janus, plan)
    slow_logp = ImagePolicy(janus).logp(janus.network, trace_of(fast))
    assert torch.equal(trace_of(fast).tokens_BN, trace_of(slow).tokens_BN)
    torch.testing.assert_close(fast.logp_BS, slow.logp_BS, atol=2e-5, rtol=0)
    torch.testing.assert_close(fast_logp, slow_logp, atol=2e-5, rtol=0)
    torch.testing.assert_close(fast_logp.detach(), fast.logp_BS, atol=2e-5, rtol=0)
    assert len({tuple(row) for row in trace_of(fast).tokens_BN.tolist()}) > 1, "images differ"


def test_the_likeliest_image_is_that_of_transformers(janus: JanusModel) -> None:
    """`JanusForConditionalGeneration.generate` with its own guidance, unconditional branch and head."""
    network: Any = janus.network
    found = trace_of(drawn(janus, replace(PLAN, temperature=0.0), PROMPTS[:2])).tokens_BN[::GROUP]
    for prompt, tokens_N in zip(PROMPTS, found, strict=False):
        ids = janus.read_drawing(prompt).cond_T[None]
        network.generation_config.generation_kwargs = {"boi_token_id": int(ids[0, -1])}
        told = network.generate(
            inputs=ids,
            attention_mask=torch.ones_like(ids),
            generation_mode="image",
            do_sample=False,
            guidance_scale=PLAN.guidance_scale,
            bos_token_id=janus.tokenizer.bos_token_id,
            pad_token_id=janus.pad_id,
            use_cache=True,
        )
        assert told[0].tolist() == tokens_N.tolist()


def test_images_are_those_of_transformers_own_decoder(janus: JanusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = janus.network
    monkeypatch.setattr("trainer.policies.unified.janus.model.MOST_DECODED", 2)  # three images in two parts
    rollout = drawn(janus, PLAN, PROMPTS[:1])
    with torch.no_grad():
        told = network.decode_image_tokens(trace_of(rollout).tokens_BN)
    for sample, pixels_HWC in zip(rollout.samples, told, strict=True):
        whole = ((pixels_HWC + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).numpy()
        # A convolution of fewer images may round otherwise, and a value that lies at the edge then falls to the other side.
        assert np.abs(sample.images[0].astype(int) - whole).max() <= 1
        assert (sample.images[0] != whole).mean() < 0.01


def test_a_row_depends_on_its_prompt_and_seed_alone(janus: JanusModel) -> None:
    policy, together = ImagePolicy(janus), drawn(janus, PLAN)
    alone = list(policy.sample(PROMPTS, GROUP, list(SEEDS), replace(PLAN, micro_batch_size=1)))
    assert torch.equal(torch.cat([trace_of(each).tokens_BN for each in alone]), trace_of(together).tokens_BN)
    logp_BN = policy.logp(janus.network, trace_of(together))
    rows = [policy.logp(janus.network, trace_of(each)) for each in alone]
    torch.testing.assert_close(torch.cat(rows), logp_BN, atol=2e-5, rtol=0)
    joined = trace_of(alone[0]).join([trace_of(each) for each in alone[1:]])
    torch.testing.assert_close(policy.logp(janus.network, joined.rows(slice(2, 7))), logp_BN[2:7], atol=2e-5, rtol=0)


def gradients(model: JanusModel, policy: ImagePolicy, trace: ImageTrace) -> dict[str, Tensor]:
    weight_BN = torch.linspace(-1, 1, trace.tokens_BN.numel()).view_as(trace.tokens_BN)
    named = {name: each for name, each in model.network.named_parameters() if each.requires_grad}
    loss = (policy.logp(model.network, trace) * weight_BN).sum()
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: each for name, each in zip(named, found, strict=True) if each is not None}


def same_gradients(some: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert some.keys() == others.keys()
    assert {"language_model", "generation_head", "generation_aligner", "generation_embeddings"} <= {
        piece for name in some for piece in name.split(".")
    }
    for name, gradient in some.items():
        scale = max(float(gradient.abs().max()), 1.0)
        torch.testing.assert_close(gradient / scale, others[name] / scale, atol=2e-5, rtol=0, msg=name)


def test_both_ways_have_the_same_gradients(janus: JanusModel, request: pytest.FixtureRequest) -> None:
    trace, policy = trace_of(drawn(janus, PLAN, PROMPTS[:2])), ImagePolicy(janus)
    fast = gradients(janus, policy, trace)
    request.getfixturevalue("plainly")
    same_gradients(fast, gradients(janus, policy, trace))


def test_layers_that_are_computed_again_have_the_same_gradients(janus: JanusModel, janus_folder: Path) -> None:
    trace = trace_of(drawn(janus, PLAN, PROMPTS[:2]))
    config = JanusConfig(
        type="janus", pretrained=str(janus_folder), dtype="float32", freeze=(), gradient_checkpointing=True
    )
    model = build(config, torch.device("cpu"))
    same_gradients(gradients(janus, ImagePolicy(janus), trace), gradients(model, ImagePolicy(model), trace))


def test_few_logits_are_kept_and_none_changes(janus: JanusModel) -> None:
    """What the backward pass holds of the codebook does not grow with the number of tokens."""
    trace = trace_of(drawn(janus, PLAN))
    whole, cut = ImagePolicy(janus), ImagePolicy(janus, most_logits=10 * janus.num_codes)
    torch.testing.assert_close(
        cut.logp(janus.network, trace), whole.logp(janus.network, trace), atol=1e-5, rtol=0, check_stride=False
    )
    same_gradients(gradients(janus, whole, trace), gradients(janus, cut, trace))
    assert kept_logits(janus, cut, trace) == 0
    assert kept_logits(janus, whole, trace) >= trace.tokens_BN.numel() * janus.num_codes


def test_ranks_with_cut_weights_call_the_head_equally_often(janus: JanusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO-3 gathers weights in every call, from all ranks: how many calls there are must not follow from a rank's own number of
    tokens."""
    trace, policy, calls = (
        trace_of(drawn(janus, PLAN)),
        ImagePolicy(janus, most_logits=10 * janus.num_codes),
        list[int](),
    )
    network: Any = janus.network
    hook = network.model.generation_head.register_forward_hook(lambda *given: calls.append(1))
    try:
        policy.logp(network, trace)
        assert len(calls) > 2
        monkeypatch.setattr("trainer.policies.unified.images.is_cut", lambda network: True)
        for rows in (slice(0, 12), slice(0, 1)):
            calls.clear()
            policy.logp(network, trace.rows(rows))
            assert len(calls) == 2, "once for each branch"
    finally:
        hook.remove()


def kept_logits(model: JanusModel, policy: ImagePolicy, trace: ImageTrace) -> int:
    """Elements of tensors as wide as the codebook that are kept for the backward pass; weights of that width are square."""
    kept = [0]

    def pack(tensor: Tensor) -> Tensor:
        if tensor.dim() == 2 and tensor.shape[1] == model.num_codes and not tensor.is_leaf:
            kept[0] += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.logp(model.network, trace)
    return kept[0]


def test_each_prompt_and_each_unconditional_branch_is_computed_once(
    janus: JanusModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four prompts of four lengths: eight prefixes for 24 branches, in drawing and in scoring."""
    seen: list[int] = []

    def counted(text: Any, prompts: Sequence[Tensor]) -> Prefix:
        seen.append(len(prompts))
        return embedded_prefix(text, prompts)

    monkeypatch.setattr("trainer.policies.unified.branches.embedded_prefix", counted)
    lengths = {len(janus.read_drawing(prompt).cond_T) for prompt in PROMPTS}
    rollout = drawn(janus, PLAN)
    ImagePolicy(janus).logp(janus.network, trace_of(rollout))
    assert seen == [len(PROMPTS) + len(lengths)] * 2


class Short:
    """The model with an image of two tokens, so that 20,000 of them are cheap."""

    def __init__(self, model: JanusModel) -> None:
        self._model, self.num_image_tokens = model, 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def decode_images(self, tokens_BN: Tensor) -> list[np.ndarray]:
        return [np.zeros((1, 1, 3), np.uint8)] * len(tokens_BN)


@pytest.fixture(scope="module")
def pairs(janus: JanusModel) -> Iterator[Tensor]:
    """Every image of two tokens (C * C, 2)."""
    codes = torch.arange(janus.num_codes)
    yield torch.cartesian_prod(codes, codes)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_frequencies_of_images_are_those_that_are_scored(janus: JanusModel, pairs: Tensor, temperature: float) -> None:
    """20,000 images of two tokens against the probabilities of all 24 * 24, by the chi-square test at one in ten thousand."""
    draws, plan = 20_000, ImagePlan(micro_batch_size=5_000, guidance_scale=1.5, temperature=temperature)
    policy: Any = ImagePolicy(Short(janus))
    rollouts = list(policy.sample(PROMPTS[:1], draws, range(draws), plan))
    tokens = torch.cat([trace_of(each).tokens_BN for each in rollouts])
    seen = torch.bincount(tokens[:, 0] * janus.num_codes + tokens[:, 1], minlength=len(pairs)).double()
    guided = probabilities(policy, janus, rollouts[0], pairs, plan)
    assert guided.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert surprise(seen, guided * draws) < 3.72
    conditional = probabilities(policy, janus, rollouts[0], pairs, replace(plan, score="conditional"))
    assert conditional.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert surprise(seen, conditional * draws) > 30, "what the relatives score is not what was drawn from"


def probabilities(policy: ImagePolicy, model: JanusModel, rollout: Rollout, pairs: Tensor, plan: ImagePlan) -> Tensor:
    with torch.no_grad():
        drawing = trace_of(rollout).drawings_B[0]
        return policy.logp(model.network, ImageTrace([drawing] * len(pairs), pairs, plan)).double().sum(1).exp()


def surprise(seen: Tensor, expected: Tensor) -> float:
    """How many standard deviations the chi-square of these counts lies above its mean (Wilson and Hilferty, 1931); images of which
    fewer than 5 are expected count as one."""
    rare = expected < 5
    seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    chi, free = float(((seen - expected) ** 2 / expected).sum()), len(seen) - 1
    return float(((chi / free) ** (1 / 3) - (1 - 2 / (9 * free))) / (2 / (9 * free)) ** 0.5)


def test_a_conditional_score_leaves_the_unconditional_branch_out(janus: JanusModel) -> None:
    """It is the log-probability at guidance 1 of what was drawn at another."""
    guided, policy = drawn(janus, PLAN), ImagePolicy(janus)
    biased = drawn(janus, replace(PLAN, score="conditional"))
    assert torch.equal(trace_of(biased).tokens_BN, trace_of(guided).tokens_BN), "what is drawn is the same"
    assert not torch.allclose(biased.logp_BS, guided.logp_BS, atol=0.1)
    alone = replace(trace_of(biased), plan=replace(PLAN, guidance_scale=1.0))
    torch.testing.assert_close(policy.logp(janus.network, alone).detach(), biased.logp_BS, atol=2e-5, rtol=0)


def test_adapters_draw_and_score_by_both_ways(janus_folder: Path, request: pytest.FixtureRequest) -> None:
    config = JanusConfig(
        type="janus",
        pretrained=str(janus_folder),
        dtype="float32",
        lora=LoraConfig(rank=4),
        freeze=("vision", "aligner"),
    )
    model = build(config, torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(1))
    fast = drawn(model, PLAN)
    fast_logp = ImagePolicy(model).logp(model.network, trace_of(fast))
    request.getfixturevalue("plainly")
    assert torch.equal(trace_of(drawn(model, PLAN)).tokens_BN, trace_of(fast).tokens_BN)
    torch.testing.assert_close(
        ImagePolicy(model).logp(model.network, trace_of(fast)), fast_logp, atol=2e-4, rtol=0, check_stride=False
    )


def test_a_copy_of_the_network_is_scored_by_its_own_weights(janus: JanusModel) -> None:
    """The reference of a KL: nothing of the model's own weights is in it."""
    trace, policy, other = trace_of(drawn(janus, PLAN)), ImagePolicy(janus), copy.deepcopy(janus.network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    assert not torch.allclose(policy.logp(other, trace), policy.logp(janus.network, trace), atol=1e-3)
