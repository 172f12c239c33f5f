"""A run proves that it sees: a sound policy passes every check, and each kind of fault is found by the check that is made for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainer.config import VlmConfig
from trainer.policies.tokens import sight
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.sight import Case, blanked, look, swapped
from trainer.policies.tokens.trace import AnswerTrace
from trainer.policies.tokens.vlm import build
from trainer.types import Prompt, Rollout


@pytest.fixture
def policy(vlm_folder: Path) -> TokenPolicy:
    """A fresh one for each test, which breaks it."""
    config = VlmConfig(type="vlm", pretrained=str(vlm_folder), dtype="float32")
    return TokenPolicy(build(config, torch.device("cpu")), keep_reference=False)


@pytest.fixture
def prompts(pictures: list[str]) -> list[Prompt]:
    texts = ["what color is the disc ?", "which ?", "how many red bar ?", "is the left ring blue ? yes no"]
    return [Prompt(f"p{n}", text, source_images=(pictures[n],)) for n, text in enumerate(texts)]


def drawn(policy: TokenPolicy, prompts: list[Prompt]) -> tuple[list[Case], list[Rollout]]:
    [rollout] = policy.sample(prompts, 1, range(4), TokenPlan(micro_batch_size=4, max_new_tokens=8))
    assert isinstance(rollout.trace, AnswerTrace)
    readings = rollout.trace.readings_B
    return [Case(s.prompt.id, r, s.tokens) for s, r in zip(rollout.samples, readings, strict=True)], [rollout]


def statuses(policy: TokenPolicy, cases: list[Case], rollouts: list[Rollout] | None = None) -> dict[str, str]:
    return {each.check: each.status for each in look(policy, cases, rollouts or [])}


FINE = {"image": "OK", "rows": "OK", "replay": "OK", "placeholders": "OK"}


def test_a_sound_policy_passes(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    found = look(policy, *drawn(policy, prompts))
    assert {each.check: each.status for each in found} == FINE and not any(each.remedy for each in found)
    image, rows, replay, placeholders = (each.sentence for each in found)
    assert "a blank image moves" in image and "nats" in image and "(medians of 4 rows)" in image
    assert "4 rows of" in rows and "(bound 0.0001)" in rows and "(bound 0.0001)" in replay
    assert f"ids {policy.model.network.config.image_token_id}" in placeholders


def test_a_model_that_is_blind_is_found(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    """As of a projector whose weights were lost: whatever is shown, the same comes out."""
    with torch.no_grad():
        for name, parameter in policy.model.network.named_parameters():
            if "modality_projection" in name:
                parameter.zero_()
    cases, rollouts = drawn(policy, prompts)
    assert statuses(policy, cases, rollouts) == FINE | {"image": "FAIL"}
    [image] = [each for each in look(policy, cases, rollouts) if each.check == "image"]
    assert image.sentence.startswith("the model does not see its images: neither a blank image nor another one moves")
    assert "image tokens" in image.remedy and "policy.check_sight: false" in image.remedy


def test_a_prompt_without_its_image_tokens_is_found(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    """A template that drops images: the pixels go nowhere."""
    plain = [policy.model.read(Prompt("p", prompt.text)) for prompt in prompts]
    pixels = [policy.model.read(prompt).inputs for prompt in prompts]
    network = policy.model.network
    forward = network.forward

    def without_pixels(
        *args: Any, pixel_values: Tensor | None = None, pixel_attention_mask: Any = None, **rest: Any
    ) -> Any:
        return forward(*args, **rest)

    network.forward = without_pixels  # what transformers does where no place waits for an image, is not to look
    readings = [
        type(r)(r.ids_T, inputs, r.text, prompts[n].source_images)
        for n, (r, inputs) in enumerate(zip(plain, pixels, strict=True))
    ]
    assert statuses(policy, [Case(str(n), reading, (20, 21)) for n, reading in enumerate(readings)])["image"] == "FAIL"


def test_a_model_that_ignores_the_mask_is_found(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    """Padded on the left, as many codes pad, a row of another length is then another row (NanoVLM-Lab)."""
    model = policy.model

    def left_padded_and_unmasked(network: Any, trace: AnswerTrace, banned_N: Any = None) -> Tensor:
        batch = model.collate(trace.readings_B, trace.tokens_B)
        padding = (1 - batch["attention_mask"]).sum(1).tolist()
        ids = torch.stack([row.roll(n) for row, n in zip(batch["input_ids"], padding, strict=True)])
        batch |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logp = network(**batch, use_cache=False).logits.float().log_softmax(-1)
        rows = [row[-len(t) - 1 : -1].gather(-1, t[:, None])[:, 0] for row, t in zip(logp, trace.tokens_B, strict=True)]
        return pad_sequence(rows, batch_first=True)

    cases, _ = drawn(policy, prompts)
    policy._logp = left_padded_and_unmasked  # type: ignore[method-assign]
    found = {each.check: each for each in look(policy, cases)}
    assert found["rows"].status == "FAIL"
    off = re.search(r"is off by ([\d.]+) in a batch of 4", found["rows"].sentence)
    assert off and float(off[1]) > sight.BOUNDS["bfloat16"], "far above what rounding does in either type"
    assert "a row depends on its neighbours: the log-probability of an answer to p" in found["rows"].sentence
    assert "rounding explains 0.0001 (float32)" in found["rows"].sentence and "attention mask" in found["rows"].remedy


def test_rows_that_leak_into_one_another_are_found(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    logp = policy._logp

    def leaking(network: Any, trace: AnswerTrace, banned_N: Any = None) -> Tensor:
        found = logp(network, trace, banned_N)
        return found + 1e-3 * (found - found.mean(0, keepdim=True))

    cases, _ = drawn(policy, prompts)
    policy._logp = leaking  # type: ignore[method-assign]
    assert statuses(policy, cases)["rows"] == "FAIL"


def test_a_drawer_that_computes_another_model_is_found(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    cases, [rollout] = drawn(policy, prompts)
    rollout.logp_BS[1, 0] += 2e-4
    assert statuses(policy, cases, [rollout]) == FINE | {"replay": "FAIL"}
    rollout.logp_BS[1, 0] = torch.nan
    [replay] = [each for each in look(policy, cases, [rollout]) if each.check == "replay"]
    assert replay.status == "FAIL" and "what was drawn is not what is trained on" in replay.sentence
    rollout.mask_BS[1, 0] = False  # type: ignore[index]
    assert statuses(policy, cases, [rollout]) == FINE


def test_a_placeholder_that_can_be_drawn_is_found(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    cases, rollouts = drawn(policy, prompts)
    policy.model.banned_N = policy.model.banned_N[policy.model.banned_N != policy.model.image_ids[0]]
    found = {each.check: each for each in look(policy, cases, rollouts)}
    assert found["placeholders"].status == "FAIL"
    assert "an answer can hold <image>, which stands for an image" in found["placeholders"].sentence


def test_what_cannot_be_checked_is_said(policy: TokenPolicy) -> None:
    reading = policy.model.read(Prompt("p", "which ?"))
    found = {each.check: each for each in look(policy, [Case("p", reading, (20, 21))])}
    assert {name: each.status for name, each in found.items()} == {
        "image": "NOT CHECKED",
        "rows": "NOT CHECKED",
        "replay": "NOT CHECKED",
        "placeholders": "OK",
    }
    assert found["image"].sentence == "none of the first 1 rows has an image"


def test_a_row_that_its_image_does_not_move_is_named(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    """Not every answer turns on its image; a first batch where some do is no failure."""
    cases, _ = drawn(policy, prompts)
    blind = cases[2]
    logp = policy._logp

    def partly(network: Any, trace: AnswerTrace, banned_N: Any = None) -> Tensor:
        found = logp(network, trace, banned_N)
        for row, tokens in enumerate(trace.tokens_B):
            if tuple(tokens.tolist()) == blind.answer:
                found[row, : len(tokens)] = -1.0
        return found

    policy._logp = partly  # type: ignore[method-assign]
    [image] = [each for each in look(policy, cases) if each.check == "image"]
    assert image.status == "OK" and image.sentence.endswith("; p2 is not moved by its own")


def test_a_blank_image_is_grey_and_another_is_of_a_neighbour(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    readings = [policy.model.read(prompt) for prompt in prompts]
    blank = blanked(readings[0]).inputs["pixel_values"]
    assert blank.unique().numel() == 1 and blank.any() and blank.shape == readings[0].inputs["pixel_values"].shape
    other = swapped(readings[0], readings).inputs["pixel_values"]
    assert torch.equal(other, readings[1].inputs["pixel_values"])
    alone = swapped(readings[0], readings[:1]).inputs["pixel_values"]
    assert torch.equal(alone, readings[0].inputs["pixel_values"].flip(-2)) and not torch.equal(
        alone, readings[0].inputs["pixel_values"]
    )


def test_the_bound_of_bfloat16_holds_with_room_and_still_finds_a_lost_mask(
    policy: TokenPolicy, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 a row in its batch is another sum: measured here, and the bound is above it."""
    cases, _ = drawn(policy, prompts)
    config = policy.model.config.model_copy(update={"dtype": "bfloat16"})
    monkeypatch.setattr(policy.model, "config", config)
    with torch.autocast("cpu", torch.bfloat16):
        found = {each.check: each for each in look(policy, cases)}
    assert found["rows"].status == "OK" and found["image"].status == "OK"
    assert sight.BOUNDS["bfloat16"] == 0.25
