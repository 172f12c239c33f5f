"""Layers computed by hand are those of transformers, for each family that is said to be supported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.text_models import END, IMAGE, PAD, VOCABULARY, prompts_of, text_model_of
from trainer.policies.tokens.llama.decode import decode
from trainer.policies.tokens.llama.drawer import answers_of
from trainer.policies.tokens.llama.inputs import read_prefix
from trainer.policies.tokens.llama.layers import fused_layers
from trainer.policies.tokens.llama.layout import supports, text_model
from trainer.policies.tokens.llama.replay import shared_logits
from trainer.samplers.tokens import draw_tokens

FAMILIES = (
    "llama",
    "llama_grouped_tied",
    "llama_biases",
    "llama3_positions",
    "yarn_positions",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
)
LONGEST = 24
BANNED = torch.tensor([PAD, IMAGE])


def likeliest(network: Any, batch: dict[str, Any], prompt_B: Tensor) -> list[list[int]]:
    model = text_model(network)

    def choose(hidden_Bd: Tensor, number: int, rows_B: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return draw_tokens(model.head(hidden_Bd), None, banned_N=BANNED, temperature=0.0, top_p=1.0, top_k=0)

    ends, prefix = [END], read_prefix(model, batch)
    drawn = decode(model, fused_layers(model), prefix, prompt_B, choose, model.text.embed_tokens, ends, LONGEST)
    return [answer.tokens_S.tolist() for answer in answers_of(drawn, len(prompt_B), ends)]


def generated(network: Any, batch: dict[str, Any]) -> list[list[int]]:
    written = network.generate(
        **batch, do_sample=False, max_new_tokens=LONGEST, suppress_tokens=BANNED.tolist(), pad_token_id=PAD
    )[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in written]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_likeliest_tokens_are_those_of_generate(name: str) -> None:
    network = text_model_of(name)
    assert supports(network) is None
    left = prompts_of(name, left=True)
    told = generated(network, left)
    assert likeliest(network, left, torch.arange(4)) == told
    assert likeliest(network, prompts_of(name, left=False), torch.arange(4)) == told, "padding has no side"
    assert len({tuple(row) for row in told}) == 4, "the prompts are told apart"


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_that_share_a_prompt_have_the_logits_of_the_plain_forward(name: str) -> None:
    network = text_model_of(name)
    batch = prompts_of(name, left=False)
    generator = torch.Generator().manual_seed(3)
    prompt_B = [0, 0, 2, 1, 3, 3, 3]
    answers = [torch.randint(8, VOCABULARY, (n,), generator=generator) for n in (4, 1, 7, 2, 1, 5, 3)]
    model = text_model(network)
    shared_NV = shared_logits(model, read_prefix(model, batch), prompt_B, answers)
    start = 0
    for prompt, tokens_S in zip(prompt_B, answers, strict=True):
        plain_SV = alone(network, batch, prompt, tokens_S)
        torch.testing.assert_close(shared_NV[start : start + len(tokens_S)], plain_SV, atol=2e-5, rtol=1e-5)
        start += len(tokens_S)


def alone(network: Any, batch: dict[str, Any], prompt: int, tokens_S: Tensor) -> Tensor:
    """Logits (S, V) of an answer from the model's own forward, with one row."""
    inside = batch["attention_mask"][prompt].bool()
    ids = torch.cat([batch["input_ids"][prompt][inside], tokens_S])[None]
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "image_grid_thw" in batch and prompt:
        first = sum(range(prompt))  # prompt n has n images
        grids = batch["image_grid_thw"]
        patches = grids.prod(1)
        given["image_grid_thw"] = grids[first : first + prompt]
        begin = int(patches[:first].sum())
        given["pixel_values"] = batch["pixel_values"][begin : begin + int(patches[first : first + prompt].sum())]
        given["mm_token_type_ids"] = (ids == IMAGE).int()
    logits: Tensor = network(**given).logits[0, -len(tokens_S) - 1 : -1]
    return logits


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gemma2", "layers of Gemma2Model are Gemma2DecoderLayer; known are LlamaDecoderLayer"),
        ("window", "attention of MistralModel has a sliding window"),
        ("some_windows", "attention of Qwen2Model has a sliding window"),
        ("dynamic_positions", "rope_type dynamic makes positions depend on the length of the text"),
    ],
)
def test_what_is_not_supported_says_why(name: str, said: str) -> None:
    network = text_model_of(name)
    assert said in str(supports(network))
    with pytest.raises(ValueError, match=said[:30]):
        text_model(network)


def test_a_model_without_a_head_is_not_supported() -> None:
    assert "has no head that makes logits" in str(supports(text_model_of("llama").model))
