"""The velocity that images are drawn by is the one that packs are trained on; samples, replays and noise keep the contracts of flows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.policy_contract import check_policy, drawn
from tests.support.small_mot import SIZES, image, picture, row, small_mot, text
from trainer.config import ConfigError
from trainer.config.mot import MotConfig
from trainer.policies.base import Denoises, Laying, Replays, Samples, SamplingPlan
from trainer.policies.flow.trace import trace_of
from trainer.policies.registry import build_policy
from trainer.policies.unified.mot.flow import MotFlow
from trainer.policies.unified.mot.policy import MotPolicy
from trainer.policies.unified.mot.vision import to_patches
from trainer.samplers.flow_sde import Kind
from trainer.samplers.guidance import Guidance, GuidanceGradient
from trainer.types import Prompt


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    folder = tmp_path_factory.mktemp("sources")
    return [
        Prompt("drawn", "draw red disc left"),
        Prompt("edited", "make left blue", source_images=(picture(folder, "source"),)),
    ]


def test_it_samples_replays_and_denoises(policy: MotPolicy) -> None:
    assert isinstance(policy, Samples) and isinstance(policy, Replays) and isinstance(policy, Denoises)


def test_the_velocity_is_the_one_that_packs_are_trained_on(policy: MotPolicy, tmp_path: Path) -> None:
    """squared_error_L of a pack = ((v - (noise - x0))^2).mean over channels, at the noise and level of the pack, for a text and for an
    edit, whose source is read by its latents and seen."""
    source, target = picture(tmp_path, "before"), picture(tmp_path, "after", "blue")
    plans = [
        (row("t2i", text("draw red disc left"), image(target, "drawn")), Prompt("t2i", "draw red disc left")),
        (
            row("edit", text("make left blue"), image(source, "clean"), image(source, "seen"), image(target, "drawn")),
            Prompt("edit", "make left blue", source_images=(source,)),
        ),
    ]
    x0 = policy.encode_images(torch.stack([policy.lay(plan, Laying(0)).drawn_from[-1] for plan, _ in plans]))
    rows = [policy.lay(plan, Laying(n, levels=(0.3 + 0.4 * n,))) for n, (plan, _) in enumerate(plans)]
    noise = torch.stack(
        [each.latents[-1].noise.T.unflatten(1, (4, 4)) for each in rows]
    )  # a linear codec: one latent a token
    sigma_B = torch.tensor([0.3, 0.7])
    x = (1 - sigma_B[:, None, None, None]) * x0 + sigma_B[:, None, None, None] * noise
    v = policy.predict([prompt for _, prompt in plans], x, sigma_B)
    assert v.shape == x.shape and v.dtype == torch.float32
    error = torch.cat([to_patches(each, 1) for each in v - (noise - x0)])
    torch.testing.assert_close((error**2).mean(1), policy.read(rows).squared_error_L, rtol=1e-5, atol=1e-5)


def test_images_of_a_prompt_share_its_context_and_see_nothing_of_one_another(
    policy: MotPolicy, prompts: Sequence[Prompt]
) -> None:
    flow = MotFlow(policy.model)
    x = torch.randn(5, *flow.latent_shape(None, None), generator=torch.Generator().manual_seed(1))
    sigma_B = torch.tensor([0.9, 0.2, 0.5, 0.5, 0.7])
    given = [prompts[0], prompts[1], prompts[1], prompts[1], prompts[0]]
    together = policy.predict(given, x, sigma_B)
    rows = flow.encode(given).pack((4, 4)).attends.layout.row_N  # type: ignore[attr-defined]
    assert int(rows.max()) + 1 == 3, "three contexts for five images"
    for n in range(5):
        alone = policy.predict([given[n]], x[n : n + 1], sigma_B[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-5, atol=1e-5)
    other = x.clone()
    other[2] += 1.0
    again = policy.predict(given, other, sigma_B)
    assert torch.equal(again[[0, 1, 3, 4]], together[[0, 1, 3, 4]]), "a neighbour moves nothing"
    assert not torch.equal(again[2], together[2])


def test_what_is_replayed_is_what_was_drawn(prompts: Sequence[Prompt]) -> None:
    """Before an update to the bit, with a gradient into both experts, the words and the encoder of seen images; and a sample depends on
    its own seed and prompt."""
    policy = small_mot()
    (whole,) = drawn(policy, prompts, 6)
    for part in policy.parts(whole):
        replayed = policy.replay(whole, part).logp_BS
        assert torch.equal(replayed.detach(), whole.logp_BS[:, part])
        replayed.sum().backward()
    with_gradient = {name for name, p in policy.trainable.named_parameters() if p.grad is not None and p.grad.any()}
    for part in (
        "embed_tokens",
        "q_proj.",
        "q_proj_moe_gen",
        "vit_model",
        "connector",
        "vae2llm",
        "llm2vae",
        "time_embedder",
    ):
        assert any(part in name for name in with_gradient), part
    alone = drawn(policy, prompts, 1)
    torch.testing.assert_close(torch.cat([each.logp_BS for each in alone]), whole.logp_BS, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "guidance", "same_noise", "through"), [("flow_sde", 3.0, False, "both"), ("cps", 2.0, True, "conditional")]
)
def test_first_ratios_are_1_in_half_precision_with_guidance_and_recomputed_layers(
    prompts: Sequence[Prompt], kind: Kind, guidance: float, same_noise: bool, through: GuidanceGradient
) -> None:
    policy = small_mot(dtype="bfloat16", gradient_checkpointing=True, freeze=("language", "vision", "connector"))
    steps = (1, 2) if same_noise else (0, 1, 2)
    plan = SamplingPlan(
        4, 6, kind, 0.7, steps, steps, guidance, guidance_gradient=through, shift=3.0, same_noise=same_noise
    )
    for rollout in policy.sample(prompts, 3, range(6), plan):
        for part in policy.parts(rollout):
            replayed = policy.replay(rollout, part).logp_BS
            assert replayed.requires_grad and torch.equal(replayed.detach(), rollout.logp_BS[:, part])


def test_guidance_leads_away_from_the_prompt_without_its_text(policy: MotPolicy, prompts: Sequence[Prompt]) -> None:
    """u + w (c - u), u under the source image alone, or under the negative prompt."""
    flow = MotFlow(policy.model)
    x = torch.randn(1, *flow.latent_shape(None, None), generator=torch.Generator().manual_seed(2))
    sigma_B = torch.tensor([1.0])
    plan = SamplingPlan(1, 1, guidance_scale=3.0)
    for negative in (None, "draw green ring right"):
        prompt = Prompt("e", "make left blue", source_images=prompts[1].source_images, negative_prompt=negative)
        away = Prompt("away", negative or "", source_images=prompt.source_images)
        c, u = (policy.predict([each], x, sigma_B) for each in (prompt, away))
        guided = policy._flow._velocity(x, 1.0, [prompt], plan)
        torch.testing.assert_close(guided, u + 3 * (c - u), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(c, u)


GUIDANCES = {
    "both": Guidance(3.0, 2.0, (0.4, 1.0), "global", 0.2),
    "images alone": Guidance(1.0, 2.0, renorm="channel"),
    "texts alone": Guidance(3.0, 1.0, renorm="text_channel"),
    "nothing": Guidance(),
}


@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=list(GUIDANCES))
def test_rollouts_guided_by_source_images_are_replayed_to_the_bit(
    prompts: Sequence[Prompt], guidance: Guidance
) -> None:
    """Drawings and edits in one micro-batch; a sample does not depend on its neighbours, nor does its gradient vanish."""
    policy = small_mot()
    steps = (0, 1, 2)
    plan = SamplingPlan(4, 6, "flow_sde", 0.7, steps, steps, guidance.text, guidance, shift=3.0, keep_final=True)
    (whole,) = policy.sample(prompts, 3, range(6), plan)
    for part in policy.parts(whole):
        replayed = policy.replay(whole, part).logp_BS
        assert torch.equal(replayed.detach(), whole.logp_BS[:, part])
        replayed.sum().backward()
    gradients = {name: p.grad for name, p in policy.trainable.named_parameters() if p.grad is not None}
    assert all(gradients[f"vit_model.vision_model.encoder.layers.0.{each}"].any() for each in ("mlp.fc1.weight",))
    alone = list(policy.sample(prompts, 3, range(6), replace(plan, micro_batch_size=1)))
    torch.testing.assert_close(torch.cat([each.logp_BS for each in alone]), whole.logp_BS, rtol=1e-4, atol=1e-4)
    (plain,) = policy.sample(prompts, 3, range(6), replace(plan, guidance=None, guidance_scale=1.0))
    # Latents, not log-probabilities: these are of the noise, the same in both but for their last bits, which may agree.
    assert torch.equal(trace_of(plain).x0, trace_of(whole).x0) == (guidance == Guidance())


def test_a_drawing_beside_an_edit_is_guided_by_its_text_alone(policy: MotPolicy, prompts: Sequence[Prompt]) -> None:
    """u + w (c - u) of the drawing; of the edit also away from the row whose images are left out, at their positions."""
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(2))
    sigma_B = torch.full((2,), 0.8)
    plan = SamplingPlan(1, 2, guidance=Guidance(3.0, 2.0, renorm="none"))
    with torch.no_grad():
        guided = policy._flow._velocity(x, 0.8, prompts, plan)
        c = policy.predict(prompts, x, sigma_B)
        u = policy.predict([replace(each, text="") for each in prompts], x, sigma_B)
        without = MotFlow(policy.model)._branches(prompts, text=False, images=True).pack((4, 4)).tokens.positions_G
    by_text = u + 3 * (c - u)
    torch.testing.assert_close(guided[0], by_text[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(guided[1], by_text[1], atol=1e-3)
    edited, left_out = without[-32:-16], without[-16:]
    assert torch.equal(edited, left_out), "an image that is left out takes its position"


def test_images_become_latents_and_back(policy: MotPolicy) -> None:
    assert MotFlow(policy.model).latent_shape(None, None) == (32, 4, 4)
    assert MotFlow(policy.model).latent_shape(16, 32) == (32, 2, 4)
    white = torch.full((2, 16, 32, 3), 255, dtype=torch.uint8)
    latents = policy.encode_images(white)
    assert latents.shape == (2, 32, 2, 4)
    assert (policy.model.decode(latents).int() - 255).abs().max() <= 3


@pytest.mark.parametrize(("height", "width"), [(20, 32), (32, 1024)])
def test_a_size_that_does_not_fit_is_said(policy: MotPolicy, height: int, width: int) -> None:
    with pytest.raises(
        ConfigError, match=f"images of {height} x {width} pixels cannot be drawn: .* multiples of 8 up to 64"
    ):
        policy.check_size(height, width)


def test_prompts_that_cannot_be_read_are_named(policy: MotPolicy) -> None:
    bad = [Prompt("a", "draw red"), Prompt("b", "draw é"), Prompt("c", "make", source_images=("nowhere.png",))]
    with pytest.raises(
        ConfigError, match=r"2 of 3 prompts cannot be read(.|\n)*prompt 'b': 'é'(.|\n)*prompt 'c': .*nowhere.png"
    ):
        policy.check_prompts(bad)


def test_the_reference_is_the_start(prompts: Sequence[Prompt]) -> None:
    """A copy of the network: what it says does not move with the trained weights."""
    from tests.support.small_mot import SIZES

    torch.manual_seed(0)
    config = MotConfig(type="mot", initialize=SIZES, dtype="float32", max_latent_size=8)
    policy: MotPolicy = build_policy(config, torch.device("cpu"), keep_reference=True)
    x = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(3))
    before = policy.predict(prompts[:1], x, torch.tensor([0.5]), reference=True)
    torch.nn.init.normal_(policy.model.network.llm2vae.weight)
    assert torch.equal(policy.predict(prompts[:1], x, torch.tensor([0.5]), reference=True), before)
    assert not torch.equal(policy.predict(prompts[:1], x, torch.tensor([0.5])).detach(), before)


def test_the_policy_keeps_the_contract_of_all(prompts: Sequence[Prompt], tmp_path: Path) -> None:
    check_policy(MotConfig(type="mot", initialize=SIZES, dtype="float32", max_latent_size=8), prompts, tmp_path)
