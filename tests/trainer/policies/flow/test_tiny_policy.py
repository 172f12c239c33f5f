"""The tiny policy: prompts, codec, sampling that ignores neighbours, replay that repeats sampling bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.repeated_indexes import adds_in_order
from trainer.config import ConfigError, TinyConfig
from trainer.policies.base import SamplingPlan, regroup
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.flow.tiny import TinyFlow
from trainer.policies.flow.tiny_model import LATENT_SHAPE, PATCH, TinyModel, to_pixels, tokenize
from trainer.policies.pca_codec import PcaCodec
from trainer.policies.registry import build_policy
from trainer.types import Prompt, Rollout

CPU = torch.device("cpu")
SMALL = TinyConfig(num_layers=2, num_heads=2, head_dim=16)
PROMPTS = [Prompt("a", 'the word "K7QX" in red'), Prompt("b", 'the word "CAT" in blue')]
KINDS = ["flow_sde", "cps", "dance_sde"]


def make_policy(*, keep_reference: bool = False, seed: int = 0) -> FlowPolicy:
    """Random weights, with the zero-initialised parts moved off zero so that the prompt matters."""
    torch.manual_seed(seed)
    model = TinyModel(SMALL)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return FlowPolicy(TinyFlow(model, CPU, about="random"), keep_reference=keep_reference)


def make_plan(kind: str = "cps", size: int = 6, **changes: object) -> SamplingPlan:
    fields: dict[str, object] = {
        "stochastic_steps": (0, 1, 2),
        "trained_steps": (0, 1, 2),
        "noise_level": 0.7,
        **changes,
    }
    return SamplingPlan(num_inference_steps=4, micro_batch_size=size, kind=kind, **fields)  # type: ignore[arg-type]


def sample(policy: FlowPolicy, plan: SamplingPlan, group_size: int = 3) -> list[Rollout]:
    return list(policy.sample(PROMPTS, group_size, list(range(2 * group_size)), plan))


@pytest.mark.parametrize("kind", KINDS)
def test_replay_before_an_update_repeats_the_log_probabilities_bit_for_bit(kind: str) -> None:
    policy = make_policy()
    (rollout,) = sample(policy, make_plan(kind))
    replay = policy.replay(rollout, slice(0, 3))
    assert replay.logp_BS.requires_grad
    assert torch.equal(replay.logp_BS.detach(), rollout.logp_BS)
    assert torch.equal((replay.logp_BS.detach() - rollout.logp_BS).exp(), torch.ones(6, 3))


def test_replay_of_some_columns_is_those_columns() -> None:
    policy = make_policy()
    (rollout,) = sample(policy, make_plan())
    assert torch.equal(policy.replay(rollout, slice(1, 3)).logp_BS.detach(), rollout.logp_BS[:, 1:])


def test_only_trained_steps_are_kept_and_replayed() -> None:
    policy = make_policy()
    (everything,) = sample(policy, make_plan())
    (rollout,) = sample(policy, make_plan(trained_steps=(1,)))
    assert rollout.trace.plan.trained_steps == (1,)
    assert rollout.trace.x_BT.shape == (6, 2, *LATENT_SHAPE), "before and after"
    assert torch.equal(rollout.logp_BS, everything.logp_BS[:, 1:2])
    assert torch.equal(policy.replay(rollout, slice(0, 1)).logp_BS.detach(), rollout.logp_BS)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_sample_does_not_depend_on_its_neighbours(size: int) -> None:
    policy = make_policy()
    (whole,) = sample(policy, make_plan(size=6))
    parts = sample(policy, make_plan(size=size))
    assert len(parts) == 6 // size
    torch.testing.assert_close(torch.cat([part.logp_BS for part in parts]), whole.logp_BS)
    ids = [s.id for part in parts for s in part.samples]
    assert ids == [s.id for s in whole.samples] == ["a#0", "a#1", "a#2", "b#0", "b#1", "b#2"]
    assert torch.cat([part.group_B for part in parts]).tolist() == [0, 0, 0, 1, 1, 1]


def test_seeds_decide_the_noise_and_prompts_decide_the_picture() -> None:
    policy = make_policy()
    plan = make_plan(stochastic_steps=(), trained_steps=())
    (first,) = policy.sample(PROMPTS, 1, [7, 7], plan)
    (again,) = policy.sample(PROMPTS, 1, [7, 8], plan)
    images = [s.images[0] for s in (*first.samples, *again.samples)]
    assert all(image is not None and image.shape == (24, 48, 3) and image.dtype == "uint8" for image in images)
    assert (images[0] == images[2]).all(), "same prompt, same seed"
    assert (images[1] != images[3]).any(), "another seed"
    assert (images[0] != images[1]).any(), "another prompt"
    assert first.logp_BS.shape == (2, 0), "an ODE has no log-probabilities"


def test_guidance_of_one_is_off_and_more_changes_the_picture() -> None:
    policy = make_policy()
    (plain,) = sample(policy, make_plan())
    (guided,) = sample(policy, make_plan(guidance_scale=4.0))
    assert not torch.equal(plain.trace.x_BT[:, -1], guided.trace.x_BT[:, -1])
    assert torch.equal(policy.replay(guided, slice(0, 3)).logp_BS.detach(), guided.logp_BS)


def test_kl_is_zero_against_the_starting_weights_and_positive_after_a_change() -> None:
    policy = make_policy(keep_reference=True)
    (rollout,) = sample(policy, make_plan())
    kl_BS = policy.replay(rollout, slice(0, 2), reference=True).kl_BS["velocity"]
    assert torch.equal(kl_BS.detach(), torch.zeros(6, 2))
    with torch.no_grad():
        policy.trainable.proj_out.weight.add_(0.01)
    changed = policy.replay(rollout, slice(0, 2), reference=True).kl_BS["velocity"]
    assert (changed > 0).all()
    with adds_in_order():
        changed.sum().backward()
    assert policy.trainable.proj_out.weight.grad is not None
    assert make_policy().replay(rollout, slice(0, 1)).kl_BS == {}
    with pytest.raises(ValueError, match="keep_reference"):
        make_policy().replay(rollout, slice(0, 1), reference=True)


def test_only_the_transformer_is_trained() -> None:
    policy = make_policy()
    assert all(p.requires_grad for p in policy.trainable.parameters())
    assert not any(p.requires_grad for p in policy.model.model.text.parameters())


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 99])
def test_regrouping_keeps_samples_and_order(size: int) -> None:
    policy = make_policy()
    sampled = sample(policy, make_plan(size=2))
    batches = regroup(sampled, size)
    assert [len(batch) for batch in batches] == [min(size, 6 - start) for start in range(0, 6, size)]
    assert [s.id for batch in batches for s in batch.samples] == [s.id for batch in sampled for s in batch.samples]
    for batch in batches:
        assert batch.resized == (len(batch) != 2)
        torch.testing.assert_close(policy.replay(batch, slice(0, 3)).logp_BS.detach(), batch.logp_BS)
    assert torch.equal(torch.cat([b.logp_BS for b in batches]), torch.cat([b.logp_BS for b in sampled]))
    assert torch.cat([b.group_B for b in batches]).tolist() == [0, 0, 0, 1, 1, 1]


def test_without_a_size_micro_batches_stay_as_sampled() -> None:
    sampled = sample(make_policy(), make_plan(size=3))
    assert all(a is b for a, b in zip(regroup(sampled, None), sampled, strict=True))


def test_wrong_number_of_seeds_names_both_numbers() -> None:
    with pytest.raises(ValueError, match="2 prompts x group_size 3 need 6 seeds; got 5"):
        list(make_policy().sample(PROMPTS, 3, range(5), make_plan()))


def test_tokens_of_a_prompt() -> None:
    assert tokenize('the word "CAT" in black') == [2, 1, 16, 0, 34]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the word CAT in red", "one quoted word"),
        ('the word "CATTY" in red', "1 to 4 characters"),
        ('the word "" in red', "1 to 4 characters"),
        ('the word "C0T" in red', "cannot draw '0'"),
        ('the word "CAT"', "names 0 of"),
        ('the word "CAT" in red and blue', "names 2 of"),
    ],
)
def test_prompts_it_cannot_draw_are_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_policy().check_prompts([PROMPTS[0], Prompt("odd", text, dataset="mine")])
    assert "'odd'" in str(caught.value) and "'mine'" in str(caught.value)


def test_edits_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"prompt 'edit' .* has source_images, but policy\.type = tiny"):
        make_policy().check_prompts([PROMPTS[0], Prompt("edit", PROMPTS[0].text, source_images=("a.png",))])


def test_codec_is_exact_on_its_span_and_orthonormal() -> None:
    torch.manual_seed(0)
    codec = PcaCodec(PATCH, LATENT_SHAPE[0])
    latents = torch.randn(512, *LATENT_SHAPE)
    pixels = codec.decode(latents)  # pictures that live in a 48-dimensional span of patches
    fitted = PcaCodec(PATCH, LATENT_SHAPE[0])
    fitted.fit(pixels)
    torch.testing.assert_close(fitted.basis.T @ fitted.basis, torch.eye(48), atol=1e-5, rtol=0)
    torch.testing.assert_close(fitted.decode(fitted.encode(pixels)), pixels, atol=1e-4, rtol=0)
    assert fitted.encode(pixels).std().item() == pytest.approx(1.0, abs=0.05)


def test_pixels_are_rounded_and_clamped() -> None:
    image = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).reshape(1, 3, 1, 2)
    assert to_pixels(image).flatten().tolist() == [0, 128, 255, 0, 255, 255]


def test_checkpoint_round_trip_and_clear_errors(tmp_path: Path) -> None:
    model = make_policy().model.model
    model.save(tmp_path / "m.safetensors", "how it was made")
    config = SMALL.model_copy(update={"checkpoint": str(tmp_path / "m.safetensors")})
    loaded = build_policy(config, CPU, keep_reference=False)
    assert loaded.about == "how it was made"
    for name, parameter in loaded.trainable.named_parameters():
        torch.testing.assert_close(parameter, model.transformer.get_parameter(name), atol=1e-3, rtol=1e-3)
    with pytest.raises(ConfigError, match=r"no checkpoint at .*nothing\.safetensors.*trainer sft"):
        build_policy(
            SMALL.model_copy(update={"checkpoint": str(tmp_path / "nothing.safetensors")}), CPU, keep_reference=False
        )
    with pytest.raises(ConfigError, match=r"does not fit policy\.num_layers"):
        build_policy(config.model_copy(update={"num_layers": 3}), CPU, keep_reference=False)
    (tmp_path / "m.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"m\.safetensors is no safetensors file or a damaged one"):
        build_policy(config, CPU, keep_reference=False)
