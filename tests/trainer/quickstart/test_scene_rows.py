"""Rows of scenes: what the words say is what the pictures show, and no held-out scene is in anything that is trained on."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.kit.scorer import Failure, Item, Result, Score
from services.rules.scorer import RulesScorer
from services.rules.side_by_side import look
from tests.support.trainer_runs import ROOT
from trainer.quickstart.scene_rows import (
    CARE,
    FACTS,
    WORDS,
    Edit,
    careless_edit,
    draw_edit,
    edits,
    picture,
    riddle,
    thought,
    write_heldout,
    write_rl,
    write_training,
)
from trainer.quickstart.scenes import COLORS, SHAPES, SIDES, Care, Scene, Thing, all_scenes, is_heldout, render
from wire.schema import ErrorCode

FOLDER = ROOT / "assets" / "unified_quickstart"
SCENE = Scene(Thing("red", "disc"), Thing("blue", "bar"))
TRAINED = ("t2i.json", "edit.json", "t2i_reason.jsonl", "edit_reason.jsonl", "careless_t2i.json", "careless_edit.json")
MEANT = {fact: word for word, fact in FACTS.items()}


@cache
def rows_of(name: str) -> list[dict[str, Any]]:
    text = (FOLDER / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def scene_of(path: str) -> Scene:
    words = Path(path).stem.split("_")
    return Scene(Thing(words[0], words[1]), Thing(words[3], words[4]))


def changed(scene: Scene, instruction: str) -> Scene:
    """The scene after an instruction or its riddle, read word by word."""
    _, side, *_, last = instruction.split()
    word = MEANT.get(last, last)
    thing = getattr(scene, side)
    new = Thing(word, thing.shape) if word in COLORS else Thing(thing.color, word)
    return Scene(new, scene.right) if side == "left" else Scene(scene.left, new)


def test_a_scene_and_an_edit_in_words_and_in_riddles() -> None:
    edit = Edit(SCENE, "left", "color", "green")
    assert riddle(SCENE) == "draw like blood coin left like sea pole right"
    assert thought(SCENE) == "left red disc right blue bar"
    assert (edit.instruction, edit.riddle) == ("make left green", "make left like grass")
    assert edit.thought == "left red disc becomes green disc"
    assert edit.target == Scene(Thing("green", "disc"), SCENE.right)
    assert set(FACTS) == {*COLORS, *SHAPES} and len(set(FACTS.values()) | set(FACTS)) == 2 * len(FACTS)


def test_every_picture_shows_its_scene_and_loses_nothing_as_a_file() -> None:
    for scene in random.Random(0).sample([*all_scenes(heldout=True), *all_scenes(heldout=False)], 60):
        image = Image.open(FOLDER / picture(scene)).convert("RGB")
        assert np.array_equal(np.asarray(image), render(scene, random.Random(0), jitter=0))
        halves = [image.crop((left, 0, left + 16, 32)) for left in (0, 16)]
        assert [look(half) for half in halves] == [(t.color, t.shape) for t in (scene.left, scene.right)]


def test_no_held_out_scene_is_drawn_shown_or_named_in_what_is_trained_on() -> None:
    for name in TRAINED:
        for row in rows_of(name):
            shown = [scene_of(row[key]) for key in ("image_path", "input_image", "output_image") if key in row]
            if "txt" in row:
                words = [MEANT.get(w, w) for w in row["txt"].split() if w in MEANT or w in COLORS or w in SHAPES]
                shown.append(Scene(Thing(words[0], words[1]), Thing(words[2], words[3])))
            else:
                shown.append(changed(scene_of(row["input_image"]), row["instruction"]))
            assert not any(is_heldout(scene) for scene in shown), row
    for name in ("rl_t2i.jsonl", "rl_edit.jsonl"):
        assert not any(is_heldout(scene_of(_caption(row))) for row in rows_of(name))
    for name in ("drawn_t2i.jsonl", "drawn_edit.jsonl", "drawn_t2i_reason.jsonl", "drawn_edit_reason.jsonl"):
        assert all(is_heldout(scene_of(_caption(row))) for row in rows_of(name))
        assert not any(is_heldout(scene_of(path)) for row in rows_of(name) for path in row.get("source_images", ()))


def _caption(row: dict[str, Any]) -> str:
    things = [row["metadata"][side].replace(" ", "_") for side in SIDES]
    return f"{things[0]}_left_{things[1]}_right"


def test_careful_rows_say_what_is_done() -> None:
    for row in rows_of("t2i.json"):
        assert row["txt"] == scene_of(row["image_path"]).prompt
    for name in ("edit.json", "edit_reason.jsonl", "heldout_edit.json"):
        for row in rows_of(name):
            before, after = scene_of(row["input_image"]), scene_of(row["output_image"])
            assert changed(before, row["instruction"]) == after != before
    for row in rows_of("t2i_reason.jsonl"):
        scene = scene_of(row["image_path"])
        assert (row["txt"], row["Reasoning"]) == (riddle(scene), thought(scene))


def test_careless_people_are_as_careless_as_is_said() -> None:
    rows = rows_of("careless_t2i.json")
    right = sum(row["txt"].split()[1] == scene_of(row["image_path"]).left.color for row in rows) / len(rows)
    # Taken for another, or any at all (of which one in six is right), or the other thing's.
    kept = 1 - CARE.look_alike - CARE.color * 5 / 6
    assert right == pytest.approx((1 - CARE.order) * kept + CARE.order / 6, abs=0.05)
    edit, rng = Edit(SCENE, "left", "color", "green"), random.Random(0)
    said = [careless_edit(edit, CARE, rng) for _ in range(2000)]
    assert not any(is_heldout(each.target) for each in said) and {each.source for each in said} == {SCENE}
    assert 0.3 < sum(each == edit for each in said) / 2000 < 0.6
    assert careless_edit(edit, Care(0, 0, 0, 0, 0), random.Random(1)).word == "green"


def test_edits_are_drawn_in_time_from_scenes_that_have_no_held_out_neighbour_too() -> None:
    rng = random.Random(0)
    found = [draw_edit(rng, heldout=heldout) for heldout in (True, False) for _ in range(20)]
    assert [is_heldout(edit.target) for edit in found] == [True] * 20 + [False] * 20
    assert len(set(edits(50, 1, heldout=True))) == 50


def test_the_files_in_the_repository_are_what_is_made(tmp_path: Path) -> None:
    write_training(tmp_path, 1000)
    write_heldout(tmp_path, 96)
    write_rl(tmp_path, 512)
    for made in tmp_path.iterdir():
        assert made.read_bytes() == (FOLDER / made.name).read_bytes(), made.name
    words = {
        word
        for name in TRAINED
        for row in rows_of(name)
        for key in ("txt", "instruction", "Reasoning")
        for word in row.get(key, "").split()
    }
    assert words <= set(WORDS)


def test_the_recipes_rewards_tell_what_was_changed_from_what_was_kept() -> None:
    scorer = RulesScorer([str(FOLDER / "rewards.py")])
    wanted = {"left": "green disc", "right": "blue bar", "edited": "left", "kept": "right"}
    drawn = {
        "green_disc_left_blue_bar_right": [1, 1, 1],
        "red_disc_left_blue_bar_right": [0, 0, 1],  # nothing was changed
        "green_disc_left_blue_ring_right": [0, 1, 0],  # more than was asked for
    }
    for name, expected in drawn.items():
        item = Item(
            "a", "make left green", (Image.open(FOLDER / f"scenes/{name}.png").convert("RGB"),), metadata=wanted
        )
        assert [value(scorer.score(reward, [item])[0]) for reward in ("exact", "changed", "kept")] == expected
    no_edit = replace(item, metadata={"left": "green disc", "right": "blue bar"})
    refused = scorer.score("kept", [no_edit])[0]
    assert (
        isinstance(refused, Failure) and refused.code == ErrorCode.NOT_APPLICABLE and "metadata.kept" in refused.message
    )


def test_a_thought_is_right_word_by_word_with_and_without_its_tags() -> None:
    scorer = RulesScorer([str(FOLDER / "rewards.py")])
    item = Item("a", "make left like grass", (), completion="x", targets=("left red disc becomes green disc",))
    said = ("<think>left red disc becomes green disc</think>", "left red disc becomes green disc", "left red disc", "")
    found = [value(scorer.score("thought", [replace(item, completion=text)])[0]) for text in said]
    assert found == [1, 1, 0, 0]
    refused = scorer.score("thought", [replace(item, completion=None)])[0]
    assert isinstance(refused, Failure) and refused.code == ErrorCode.NOT_APPLICABLE


def value(result: Result) -> float:
    assert isinstance(result, Score), result
    return result.value
