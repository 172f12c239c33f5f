"""Conversations about scenes for the native model's quickstart, in the JSON lines of NEO's users, and questions about scenes held out.

captions.jsonl   <image> say                                            red disc left blue bar right
questions.jsonl  <image> what color left ? red or blue or green         red
talks.jsonl      both without an image, answered at random, as the language model has learnt them
heldout.jsonl    the same kind of question about scenes that no training has seen or named
unseen.jsonl     the same questions without the image: who answers more than a third of them right has been told something

python -m trainer.quickstart.native_rows FOLDER    writes the five files; the pictures are those of trainer.quickstart.scene_rows
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.quickstart.scene_rows import picture
from trainer.quickstart.scenes import all_scenes, data_url, render
from trainer.quickstart.small_qwen3 import SAY, question, talk

Row = dict[str, Any]
QUESTIONS_A_SCENE = 3
TALKS = 1024
HELD_OUT = 192


def conversation(image: str, asked: str, answer: str) -> Row:
    """A row as NEO writes it."""
    turns = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns}


def captions() -> list[Row]:
    """What is on each picture that may be trained on."""
    return [conversation(Path(picture(scene)).name, SAY, scene.caption) for scene in all_scenes(heldout=False)]


def questions(seed: int) -> list[Row]:
    """Questions about each of them."""
    rng = random.Random(seed)
    scenes = all_scenes(heldout=False) * QUESTIONS_A_SCENE
    return [conversation(Path(picture(scene)).name, *question(scene, rng)) for scene in scenes]


def talks(seed: int) -> list[Row]:
    """What the language model knows already, so that it does not forget it: without an image no answer is known."""
    rng = random.Random(seed)
    found = []
    for _ in range(TALKS):
        asked, answer = talk(rng)
        found.append({"conversations": [{"from": "human", "value": f"\n{asked}"}, {"from": "gpt", "value": answer}]})
    return found


def held_out_questions(seed: int) -> list[Row]:
    """Questions about scenes that are held out, each with its image."""
    rng = random.Random(seed)
    rows = []
    for scene in rng.sample(all_scenes(heldout=True), HELD_OUT):
        asked, answer = question(scene, rng)
        image = data_url(render(scene, random.Random(0), jitter=0))
        rows.append({"question": f"<image>\n{asked}", "answer": answer, "image": image})
    return rows


def without_images(rows: Sequence[Row]) -> list[Row]:
    """The same questions, of which the pictures are gone."""
    return [{"question": row["question"].removeprefix("<image>"), "answer": row["answer"]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the conversations of the native model's quickstart.")
    parser.add_argument("folder", type=Path, help="Where the five files go.")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    held_out = held_out_questions(1)
    files = {
        "captions": captions(),
        "questions": questions(0),
        "talks": talks(2),
        "heldout": held_out,
        "unseen": without_images(held_out),
    }
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
