"""The fast loop draws what `generate` draws, and a row alone what it draws among others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer.config import VlmConfig
from trainer.policies.tokens.draw import Answer, Reading, TokenPlan
from trainer.policies.tokens.generate import GenerateDrawer
from trainer.policies.tokens.llama.decode import places
from trainer.policies.tokens.llama.drawer import LlamaDrawer
from trainer.policies.tokens.model import TokenModel
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.vlm import build
from trainer.types import Prompt

GROUP = 3


@pytest.fixture(scope="module")
def model(vlm_folder: Path) -> TokenModel:
    config = VlmConfig(type="vlm", pretrained=str(vlm_folder), dtype="float32")
    return build(config, torch.device("cpu"))


@pytest.fixture(scope="module")
def readings(model: TokenModel, pictures: list[str]) -> list[Reading]:
    """Five prompts of unequal length, with no to four images."""
    texts = ["what color is the disc ?", "which ?", "how many red bar is the left ?", "is the ring blue ?", "say"]
    return [model.read(Prompt(f"p{n}", text, source_images=tuple(pictures[:n]))) for n, text in enumerate(texts)]


def tokens(answers: Sequence[Answer]) -> list[list[int]]:
    return [answer.tokens_S.tolist() for answer in answers]


def early_ends(model: TokenModel) -> tuple[int, ...]:
    """A few words that end an answer, so that rows end at different places."""
    return tuple(model.tokenizer.convert_tokens_to_ids(["red", "blue", "a", "7", "?", "left"]))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {},
        {"temperature": 0.5},
        {"top_k": 4},
        {"top_p": 0.7, "temperature": 1.5},
    ],
    ids=str,
)
def test_both_ways_draw_the_same(model: TokenModel, readings: list[Reading], fields: dict[str, Any]) -> None:
    plan = TokenPlan(micro_batch_size=64, max_new_tokens=12, stop_ids=early_ends(model), **fields)
    seeds = range(7, 7 + GROUP * len(readings))
    fast = LlamaDrawer(model).draw(readings, GROUP, seeds, plan)
    slow = GenerateDrawer(model).draw(readings, GROUP, seeds, plan)
    assert tokens(fast) == tokens(slow)
    assert [answer.finished for answer in fast] == [answer.finished for answer in slow]
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one.logp_S, other.logp_S, atol=1e-5, rtol=0)
        assert (one.kept_SV is None) == (other.kept_SV is None)
        assert one.kept_SV is None or other.kept_SV is None or torch.equal(one.kept_SV, other.kept_SV)
    if fields.get("temperature") != 0.0:
        assert len({len(answer.tokens_S) for answer in fast}) > 4, "rows end, and are dropped, at different places"
        assert {answer.finished for answer in fast} == {True, False}


def test_a_row_alone_is_the_row_in_its_batch(model: TokenModel, readings: list[Reading]) -> None:
    plan = TokenPlan(micro_batch_size=64, max_new_tokens=12, stop_ids=early_ends(model))
    seeds = list(range(GROUP * len(readings)))
    together = LlamaDrawer(model).draw(readings, GROUP, seeds, plan)
    for row, answer in enumerate(together):
        [alone] = LlamaDrawer(model).draw([readings[row // GROUP]], 1, [seeds[row]], plan)
        assert alone.tokens_S.tolist() == answer.tokens_S.tolist()
        torch.testing.assert_close(alone.logp_S, answer.logp_S, atol=1e-5, rtol=0)


def test_rows_are_computed_once_until_they_differ(model: TokenModel, readings: list[Reading]) -> None:
    """At each position as many beginnings as the rows that go on have written: all of a group the same, and no ended one."""
    network: Any = model.network
    computed: list[int] = []
    last: nn.Module = network.model.text_model.norm
    handle = last.register_forward_pre_hook(lambda module, args: computed.append(len(args[0])))
    greedy = TokenPlan(micro_batch_size=64, max_new_tokens=12, stop_ids=early_ends(model), temperature=0.0)
    free = TokenPlan(micro_batch_size=64, max_new_tokens=12, stop_ids=early_ends(model), temperature=0.5)
    try:
        for plan in (greedy, free):
            computed.clear()
            answers = LlamaDrawer(model).draw(readings, GROUP, range(15), plan)
            written = [(row // GROUP, answer.tokens_S.tolist()) for row, answer in enumerate(answers)]
            assert computed == [
                len({(prompt, *tokens[:number]) for prompt, tokens in written if len(tokens) > number})
                for number in range(max(len(tokens) for _, tokens in written))
            ]
            assert computed[0] == len(readings) and (plan is greedy or max(computed) > len(readings))
    finally:
        handle.remove()


def test_a_beginning_moves_only_where_rows_part_or_end() -> None:
    for before, expected, copied in [
        ([0, 1, 2], [0, 1, 2], []),
        ([0, 0, 1], [0, 2, 1], [1]),  # the second that goes on from 0 takes the free place
        ([0, 0, 3], [0, 1, 2], [1, 2]),  # of 1 and 2 all rows have ended
        ([2], [0], [0]),
        ([1, 1, 1, 1], [1, 0, 2, 3], [1, 2, 3]),
    ]:
        place_U, is_copied_U = places(torch.tensor(before))
        assert place_U.tolist() == expected
        assert is_copied_U.nonzero()[:, 0].tolist() == copied


def test_in_bfloat16_log_probabilities_stay_near_those_of_float32(model: TokenModel, readings: list[Reading]) -> None:
    """The first token is drawn after the same prompt either way, so its log-probability can be compared."""
    plan = TokenPlan(micro_batch_size=64, max_new_tokens=1)
    seeds = range(GROUP * len(readings))
    exact = LlamaDrawer(model).draw(readings, GROUP, seeds, plan)
    with torch.autocast("cpu", torch.bfloat16):
        rough = LlamaDrawer(model).draw(readings, GROUP, seeds, plan)
        slow = GenerateDrawer(model).draw(readings, GROUP, seeds, plan)
    pairs = [(a, b, c) for a, b, c in zip(exact, rough, slow, strict=True) if tokens([a]) == tokens([b]) == tokens([c])]
    assert len(pairs) >= len(exact) - 2
    for one, other, third in pairs:
        torch.testing.assert_close(other.logp_S, one.logp_S, atol=0.08, rtol=0)
        torch.testing.assert_close(third.logp_S, one.logp_S, atol=0.08, rtol=0)


def test_adapters_are_merged(vlm_folder: Path, readings: list[Reading]) -> None:
    config = VlmConfig(type="vlm", pretrained=str(vlm_folder), dtype="float32")
    model = build(config, torch.device("cpu"))
    before = tokens(LlamaDrawer(model).draw(readings, GROUP, range(15), PLAN_12))
    model.network = with_adapters(model.network)
    fast, slow = (kind(model).draw(readings, GROUP, range(15), PLAN_12) for kind in (LlamaDrawer, GenerateDrawer))
    assert tokens(fast) == tokens(slow) != before
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one.logp_S, other.logp_S, atol=5e-5, rtol=0)
    network: Any = model.network
    with network.disable_adapter():
        assert tokens(LlamaDrawer(model).draw(readings, GROUP, range(15), PLAN_12)) == before


PLAN_12 = TokenPlan(micro_batch_size=64, max_new_tokens=12)


def with_adapters(network: nn.Module) -> nn.Module:
    """Adapters on all linear layers of the language model, which change what it says."""
    from peft import LoraConfig, get_peft_model

    names = "|".join(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    config = LoraConfig(r=4, lora_alpha=8, target_modules=rf".*text_model.*({names})")
    given: Any = network
    adapted: nn.Module = get_peft_model(given, config).eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.1)
    return adapted


def test_it_is_chosen_where_it_fits(model: TokenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(TokenPolicy(model, keep_reference=False).drawer, LlamaDrawer)
    monkeypatch.setattr("trainer.policies.tokens.llama.layout.LAYERS", ())
    assert isinstance(TokenPolicy(model, keep_reference=False).drawer, GenerateDrawer)
