"""The conversations of the native model's quickstart: right, apart from what is held out, the same at every writing, and at chance
without the image."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from trainer.quickstart.native_rows import captions, held_out_questions, questions, talks, without_images
from trainer.quickstart.scene_rows import picture
from trainer.quickstart.scenes import all_scenes, is_heldout
from trainer.quickstart.small_qwen3 import OFFERED, SAY, framed, word_tokenizer

ROOT = Path(__file__).resolve().parents[3]
SCENES = {Path(picture(scene)).name: scene for held in (False, True) for scene in all_scenes(heldout=held)}


def asked(row: dict[str, Any]) -> tuple[str, str]:
    human, gpt = row["conversations"]
    return human["value"].split("\n")[1], gpt["value"]


def right_answer(words: str, name: str) -> str:
    _, kind, side = words.split(" ? ", maxsplit=1)[0].split()
    return str(getattr(getattr(SCENES[name], side), kind))


def test_what_is_trained_on_is_right_and_of_no_held_out_scene() -> None:
    for row in [*captions(), *questions(0)]:
        words, answer = asked(row)
        assert not is_heldout(SCENES[row["image"]])
        assert answer == (SCENES[row["image"]].caption if words == SAY else right_answer(words, row["image"]))
        assert (ROOT / "assets/unified_quickstart/scenes" / row["image"]).is_file()


def test_held_out_questions_offer_three_words_and_nothing_says_which() -> None:
    rows, blind = held_out_questions(1), without_images(held_out_questions(1))
    assert len({row["image"] for row in rows}) == len(rows) == 192
    places = Counter()
    for row, without in zip(rows, blind, strict=True):
        words = row["question"].removeprefix("<image>\n").split(" ? ")[1].split(" or ")
        assert len(set(words)) == OFFERED and row["answer"] in words
        places[words.index(row["answer"])] += 1
        assert without == {"question": row["question"].removeprefix("<image>"), "answer": row["answer"]}
    assert min(places.values()) > 0.25 * len(rows), "no place in the question gives the answer away"
    guessed = Counter(asked(row)[1] for row in questions(0))
    assert max(guessed.values()) < 0.12 * sum(guessed.values()), "no word is right more often than others"


def test_the_files_are_those_that_the_program_writes() -> None:
    made = {
        "captions": captions(),
        "questions": questions(0),
        "talks": talks(2),
        "heldout": held_out_questions(1),
        "unseen": without_images(held_out_questions(1)),
    }
    for name, rows in made.items():
        path = ROOT / "assets/neo_quickstart" / f"{name}.jsonl"
        assert [json.loads(line) for line in path.read_text().splitlines()] == rows, name


def test_the_language_model_knows_every_word() -> None:
    tokenizer = word_tokenizer()
    for row in random.Random(0).sample([*captions(), *questions(0), *talks(2)], 200):
        words, answer = asked(row)
        ids = tokenizer(framed(words, answer))["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(tokenizer(answer)["input_ids"]) == answer
    shipped = json.loads((ROOT / "assets/neo_quickstart/language/tokenizer.json").read_text())
    assert shipped["model"]["vocab"] == tokenizer.get_vocab()
