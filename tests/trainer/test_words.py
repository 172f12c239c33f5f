"""The quickstart's words: what is held out stays out of every training text, by construction."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from trainer.policies.flow.tiny_model import tokenize
from trainer.quickstart.words import INKS, Word, corrupt, draw_word, is_heldout, render, write_prompts

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "quickstart"


def rows(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (ASSETS / name).read_text(encoding="utf-8").splitlines()]


def test_committed_prompt_files_are_what_the_command_writes(tmp_path: Path) -> None:
    write_prompts(tmp_path / "train.jsonl", 2048, heldout=False, seed=0)
    write_prompts(tmp_path / "heldout.jsonl", 192, heldout=True, seed=1)
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / name).read_bytes() == (ASSETS / name).read_bytes()


def test_heldout_words_are_in_no_training_file() -> None:
    train = {str(row["targets"]) for row in rows("train.jsonl")}
    heldout = {str(row["targets"]) for row in rows("heldout.jsonl")}
    assert len(heldout) == 192 and len(train) == 2048
    assert not train & heldout


def test_pre_training_can_never_draw_or_caption_a_heldout_word() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        word = draw_word(rng, heldout=False)
        assert not is_heldout(word.text)
        assert not is_heldout(corrupt(word, rng, char_noise=0.5, color_noise=0.5).text)


def test_captions_are_wrong_as_often_as_asked() -> None:
    rng = random.Random(0)
    words = [draw_word(rng, heldout=False) for _ in range(4000)]
    captions = [corrupt(word, rng, 0.2, 0.3) for word in words]
    wrong_chars = sum(a != b for w, c in zip(words, captions, strict=True) for a, b in zip(w.text, c.text, strict=True))
    assert wrong_chars / sum(len(w.text) for w in words) == pytest.approx(0.2, abs=0.02)
    assert sum(w.color != c.color for w, c in zip(words, captions, strict=True)) / 4000 == pytest.approx(0.3, abs=0.03)
    assert corrupt(words[0], rng, 0.0, 0.0) == words[0]


@pytest.mark.parametrize("ink", INKS)
def test_a_picture_holds_the_ink_on_white(ink: str) -> None:
    pixels = np.asarray(render(Word("K7QX", ink), random.Random(0)))
    assert pixels.shape == (24, 48, 3)
    assert (pixels == 255).all(-1).mean() > 0.4
    assert np.abs(pixels.astype(int) - np.array(INKS[ink])).sum(-1).min() < 30


def test_every_prompt_of_the_files_can_be_drawn() -> None:
    for row in rows("train.jsonl") + rows("heldout.jsonl"):
        assert len(tokenize(str(row["prompt"]))) == 5
