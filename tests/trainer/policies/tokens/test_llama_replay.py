"""Prompts read once for their answers give the log-probabilities and the gradients of the plain forward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tests.support.repeated_indexes import adds_in_order
from tests.trainer.policies.tokens.test_llama_drawer import early_ends, with_adapters
from trainer.config import VlmConfig
from trainer.policies.base import regroup
from trainer.policies.tokens import logits as logits_module
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.trace import AnswerTrace
from trainer.policies.tokens.vlm import build
from trainer.types import Prompt, Rollout


def make_policy(folder: Path, *, adapters: bool = False, **fields: Any) -> TokenPolicy:
    model = build(VlmConfig(type="vlm", pretrained=str(folder), dtype="float32", **fields), torch.device("cpu"))
    if adapters:
        model.network = with_adapters(model.network)
    return TokenPolicy(model, keep_reference=False)


def drawn(policy: TokenPolicy, pictures: list[str], **fields: Any) -> Rollout:
    texts = ["what color is the disc ?", "which ?", "how many red bar is the left ?", "is the ring blue ?", "say"]
    prompts = [Prompt(f"p{n}", text, source_images=tuple(pictures[:n])) for n, text in enumerate(texts)]
    plan = TokenPlan(micro_batch_size=64, max_new_tokens=10, stop_ids=early_ends(policy.model), **fields)
    [rollout] = policy.sample(prompts, 4, range(20), plan)
    return rollout


def gradients(policy: TokenPolicy, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and the gradient of a sum in which each token has a weight of its own."""
    policy.trainable.zero_grad()
    logp_BS = policy.replay(rollout, policy.parts(rollout)[0]).logp_BS
    weight_BS = torch.randn(logp_BS.shape, generator=torch.Generator().manual_seed(2)) / logp_BS.numel()
    with adds_in_order():
        (logp_BS * weight_BS).sum().backward()
    found = {name: p.grad.clone() for name, p in policy.trainable.named_parameters() if p.grad is not None}
    return logp_BS.detach(), found


# Logits lie between -20 and 20, and a step of float32 is 2e-6 there.
ROUNDING = 1e-5


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits_module, "supports", lambda network: "not now")


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({}, {}),
        ({}, {"temperature": 0.7, "top_p": 0.8}),
        ({"freeze": ("vision", "projector")}, {}),
        ({"adapters": True}, {}),
    ],
    ids=str,
)
def test_shared_prompts_give_the_plain_gradient(
    vlm_folder: Path,
    pictures: list[str],
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    fields: dict[str, Any],
) -> None:
    policy = make_policy(vlm_folder, **given)
    rollout = drawn(policy, pictures, **fields)
    shared_BS, shared = gradients(policy, rollout)
    plainly(monkeypatch)
    plain_BS, plain = gradients(policy, rollout)
    torch.testing.assert_close(shared_BS, plain_BS, atol=ROUNDING, rtol=0)
    assert shared.keys() == plain.keys()
    if given:
        assert not any("vision" in name for name in shared)
    else:
        assert any("vision_model" in name for name in shared) and any("connector" in name for name in shared)
    for name, gradient in shared.items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-5, rtol=1e-4, msg=name)
    assert max(float(gradient.abs().max()) for gradient in shared.values()) > 0.01


def test_any_rows_of_a_rollout_are_computed_as_in_it(vlm_folder: Path, pictures: list[str]) -> None:
    """Micro-batches cut groups where they like, and join rows of several."""
    policy = make_policy(vlm_folder)
    rollout = drawn(policy, pictures)
    whole_BS = policy.replay(rollout, policy.parts(rollout)[0]).logp_BS
    first = 0
    for part in regroup([rollout], 3):
        logp_BS = policy.replay(part, policy.parts(part)[0]).logp_BS
        expected = whole_BS[first : first + len(part), : logp_BS.shape[1]]
        torch.testing.assert_close(logp_BS, expected, atol=ROUNDING, rtol=0)
        first += len(part)


def test_each_prompt_is_computed_once(vlm_folder: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(vlm_folder)
    rollout = drawn(policy, pictures)
    rows: list[int] = []
    network: Any = policy.model.network
    vision: nn.Module = network.model.vision_model
    handle = vision.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    policy.replay(rollout, policy.parts(rollout)[0])
    plainly(monkeypatch)
    policy.replay(rollout, policy.parts(rollout)[0])
    handle.remove()
    assert rows == [0 + 1 + 2 + 3 + 4, 4 * (0 + 1 + 2 + 3 + 4)], "images seen, with four answers to a prompt"


def test_equal_answers_are_computed_once(
    vlm_folder: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal answers to one prompt, not to two; their gradients add up."""
    policy = make_policy(vlm_folder)
    rollout = drawn(policy, pictures)
    trace = cast(AnswerTrace, rollout.trace)
    longest = max(trace.tokens_B, key=len)
    same = [longest if row % 2 or row < 8 else tokens_S for row, tokens_S in enumerate(trace.tokens_B)]
    mask_BS = pad_sequence([torch.ones(len(tokens_S), dtype=torch.bool) for tokens_S in same], batch_first=True)
    rollout = replace(rollout, trace=replace(trace, tokens_B=same), logp_BS=torch.zeros(mask_BS.shape), mask_BS=mask_BS)
    network: Any = policy.model.network
    computed: list[int] = []
    layer: nn.Module = network.model.text_model.layers[0].mlp
    handle = layer.register_forward_pre_hook(lambda module, args: computed.append(len(args[0])))
    shared_BS, shared = gradients(policy, rollout)
    handle.remove()
    prompts = {id(reading): len(reading.ids_T) for reading in trace.readings_B}
    distinct = {(id(reading), *tokens_S.tolist()) for reading, tokens_S in zip(trace.readings_B, same, strict=True)}
    assert 5 < len(distinct) < 20
    assert computed == [sum(prompts.values()) + sum(len(each) - 2 for each in distinct)], (
        "the last token predicts nothing"
    )
    plainly(monkeypatch)
    plain_BS, plain = gradients(policy, rollout)
    torch.testing.assert_close(shared_BS, plain_BS, atol=ROUNDING, rtol=0)
    for name, gradient in shared.items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-5, rtol=1e-4, msg=name)


def test_recomputed_layers_take_the_plain_way(vlm_folder: Path, pictures: list[str]) -> None:
    """Gradient checkpointing recomputes the model's own layers, which the shared way does not call."""
    policy = make_policy(vlm_folder, gradient_checkpointing=True)
    rollout = drawn(policy, pictures)
    again = policy.replay(rollout, policy.parts(rollout)[0]).logp_BS
    assert rollout.mask_BS is not None
    torch.testing.assert_close(again[rollout.mask_BS], rollout.logp_BS[rollout.mask_BS], atol=1e-4, rtol=0)
