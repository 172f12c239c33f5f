"""Encoders that are kept off the device: one visit a step, none where prompts are known, and the host's weights are never replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.pretended_events import count
from tests.support.pretended_gpu import GPU, pretended_gpu
from tests.support.tiny_pipelines import make_flux, make_qwen_image, make_sd3
from trainer.config import FluxConfig, QwenImageConfig, Sd3Config
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.embedding_cache import EmbeddingCache
from trainer.policies.flow.encoders import CachedEncoders, Visitors
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.flow.upload import upload_once
from trainer.policies.registry import build_policy
from trainer.types import Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt(name, text) for name, text in (("a", "a red cat"), ("b", "a dog"), ("c", "a sign"))]
PLAN = SamplingPlan(2, 2, "cps", 0.7, (0,), (0,), height=16, width=16, shift=None, guidance_scale=4.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd3(tmp_path_factory.mktemp("sd3"), t5=False)


def build(folder: Path, *, offload: bool = True, cache: Path | None = None) -> FlowPolicy:
    torch.manual_seed(0)
    fields = {"pretrained": str(folder), "dtype": "float32", "offload_encoders": offload, "max_sequence_length": 8}
    policy = build_policy(
        Sd3Config(type="sd3", embedding_cache=cache and str(cache), **fields), CPU, keep_reference=False
    )
    assert isinstance(policy, FlowPolicy)
    return policy


def visitors_of(policy: FlowPolicy) -> Visitors:
    found: Visitors | None = policy.model.texts.encoders.visitors  # type: ignore[attr-defined]
    assert found is not None
    return found


def a_step(policy: FlowPolicy, prompts: Sequence[Prompt], plan: SamplingPlan = PLAN) -> list[Tensor]:
    """Samples of a step in micro-batches of two, and their replays."""
    rollouts = list(policy.sample(prompts, 2, range(2 * len(prompts)), plan))
    assert len(rollouts) == len(prompts)
    return [policy.replay(rollout, part).logp_BS for rollout in rollouts for part in policy.parts(rollout)]


@pytest.mark.parametrize("gradient", ["both", "conditional"])
def test_a_step_is_one_visit_and_none_where_its_prompts_are_known(folder: Path, gradient: str, tmp_path: Path) -> None:
    policy, plan = build(folder, cache=tmp_path), replace(PLAN, guidance_gradient=gradient)
    visitors = visitors_of(policy)
    first = a_step(policy, PROMPTS, plan)
    assert visitors.visits == 1 and not visitors.here
    a_step(policy, PROMPTS[::-1], plan)
    assert visitors.visits == 1
    a_step(policy, [*PROMPTS, Prompt("d", "a cat")], plan)
    assert visitors.visits == 2
    staying, again = build(folder, offload=False), build(folder, cache=tmp_path)
    assert all(map(torch.equal, first, a_step(staying, PROMPTS, plan)))
    assert all(map(torch.equal, first, a_step(again, PROMPTS, plan))) and visitors_of(again).visits == 0  # of the disk


def test_a_negative_prompt_is_read_in_the_same_visit(folder: Path) -> None:
    policy = build(folder)
    a_step(policy, [replace(prompt, negative_prompt=f"no {prompt.text}") for prompt in PROMPTS])
    assert visitors_of(policy).visits == 1


class Encoder(nn.Module):
    """Tied weights and a buffer, as T5 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.again = self.first
        self.register_buffer("table", torch.ones(2), persistent=False)

    def read(self, text: str) -> dict[str, Tensor]:
        return {"states": self.first(self.table * len(text)).expand(8, 2).clone()}  # 64 bytes


@pytest.mark.parametrize(("rows", "visits"), [(9, 1), (5, 2), (3, 3), (1, 8)])
def test_a_visit_reads_what_the_memory_holds(rows: int, visits: int) -> None:
    encoder = Encoder()
    encoders = CachedEncoders([encoder], EmbeddingCache("", max_bytes=64 * rows), CPU, offload=True)
    asked = [{text: partial(encoder.read, text)} for text in "abcdefgh"]
    encoders.expect({text: encode for each in asked for text, encode in each.items()})
    found = [tensors for each in asked for tensors in encoders(each).values()]
    assert encoders.visitors is not None and encoders.visitors.visits == visits
    assert len(found) == 8


def test_what_was_not_said_to_come_is_read_alone() -> None:
    encoder = Encoder()
    encoders = CachedEncoders([encoder], EmbeddingCache("", max_bytes=1 << 20), CPU, offload=True)
    encoders.expect({"a": partial(encoder.read, "a")})
    encoders({"b": partial(encoder.read, "b")})
    assert encoders.visitors is not None and encoders.visitors.visits == 1
    encoders({"a": partial(encoder.read, "a")})
    assert encoders.visitors.visits == 2


def test_visitors_leave_nothing_on_the_device_and_take_nothing_back() -> None:
    with pretended_gpu() as gpu:
        encoder = Encoder().requires_grad_(False)
        visitors = Visitors([encoder, encoder.first], GPU)
        kept = [tensor.data_ptr() for tensor in (*encoder.parameters(), *encoder.buffers())]
        with gpu.during() as events:
            visitors.come()
            assert all(gpu.holds(tensor) for tensor in (*encoder.parameters(), *encoder.buffers()))
            assert encoder.again.weight is encoder.first.weight
            visitors.leave()
        assert count(events, "upload") == count(events, "read") == 0, "a visit waits for nothing"
        assert not any(gpu.holds(tensor) for tensor in (*encoder.parameters(), *encoder.buffers()))
    assert [tensor.data_ptr() for tensor in (*encoder.parameters(), *encoder.buffers())] == kept


def test_rows_that_are_the_same_are_uploaded_once() -> None:
    joined: list[Sequence[str]] = []

    def join(keys: Sequence[str]) -> dict[str, Tensor]:
        joined.append(keys)
        return {"states": torch.stack([torch.full((2,), float(ord(key))) for key in keys])}

    found = upload_once(["b", "b", "a", "b"], join, CPU)["states"]
    assert joined == [["b", "a"]] and found[:, 0].tolist() == [98.0, 98.0, 97.0, 98.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "section"),
    [
        (make_sd3, partial(Sd3Config, type="sd3")),
        (make_flux, partial(FluxConfig, type="flux")),
        (make_qwen_image, partial(QwenImageConfig, type="qwen_image")),
    ],
)
def test_a_group_is_uploaded_as_one_prompt(
    make: Callable[[Path], Path], section: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = build_policy(section(pretrained=str(make(tmp_path)), dtype="float32"), CPU, keep_reference=False)
    alone = policy.model.encode(PROMPTS[:2])
    sent: list[int] = []
    monkeypatch.setattr(
        "trainer.policies.flow.upload.sent", lambda tensor, device: (sent.append(len(tensor)), tensor)[1]
    )
    group = policy.model.encode([PROMPTS[0]] * 3 + [PROMPTS[1]] * 3)
    assert set(sent) == {2}
    for name, tensor in alone.items():
        assert torch.equal(group[name], tensor[[0, 0, 0, 1, 1, 1]]), name
