"""The small Janus before training: its codebook loses nothing, its parts are as large as each other's, its words are all known."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from trainer.quickstart.scenes import all_scenes, draw_scene, questions_of, render
from trainer.quickstart.small_janus import (
    IMAGE_TOKENS,
    PATCH,
    codebook,
    new_network,
    processor,
    tokens_of,
    word_tokenizer,
)


def test_tokens_hold_all_of_an_image() -> None:
    rng = random.Random(0)
    for _ in range(20):
        image = render(draw_scene(rng, heldout=False), rng)
        tokens = tokens_of(image)
        assert tokens.shape == (IMAGE_TOKENS,)
        rows = codebook()[tokens].reshape(4, 4, PATCH, PATCH, 3).transpose(0, 2, 1, 3, 4)
        assert np.array_equal(rows.reshape(image.shape), image)
    assert len(codebook()) == 433


def test_every_word_is_known() -> None:
    tokenizer = word_tokenizer()
    for scene in all_scenes(heldout=True)[:40]:
        for text in (scene.prompt, scene.caption, *(question.text for question in questions_of(scene))):
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text
    assert tokenizer.unk_token_id not in tokenizer("say <answer> A </answer>")["input_ids"]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return new_network(word_tokenizer())


def test_image_tokens_enter_the_layers_as_large_as_words(network: torch.nn.Module) -> None:
    """With transformers' own initialisation they would have a root mean square of some 1e-4, below RMSNorm's epsilon."""
    drawn = network.prepare_embeddings_for_image_generation(torch.arange(len(codebook())))  # type: ignore[operator]
    words = network.get_input_embeddings().weight  # type: ignore[operator]
    assert 0.3 < drawn.square().mean().sqrt() / words.square().mean().sqrt() < 1.5


def test_head_and_embeddings_are_apart_and_the_model_is_small(network: torch.nn.Module) -> None:
    assert network.lm_head.weight is not network.get_input_embeddings().weight  # type: ignore[union-attr, operator]
    assert sum(parameter.numel() for parameter in network.parameters()) < 2_000_000


def test_the_processor_read_from_a_folder_takes_images_as_they_are(tmp_path: Path) -> None:
    processor().save_pretrained(tmp_path)
    made = AutoProcessor.from_pretrained(tmp_path)
    rng = random.Random(1)
    image = render(draw_scene(rng, heldout=False), rng)
    found = made(text=["<image_placeholder>what"], images=[Image.fromarray(image)], return_tensors="pt")
    wanted = (torch.from_numpy(image).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
    assert torch.allclose(found["pixel_values"][0], wanted, atol=1e-6)
    assert (found["input_ids"] == made.tokenizer.image_token_id).sum() == IMAGE_TOKENS
