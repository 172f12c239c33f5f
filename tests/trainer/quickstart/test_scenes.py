"""Scenes: what is asked has one right answer that the image shows, and no kind of scene is on one side of the split alone."""

from __future__ import annotations

import base64
import io
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.rules.side_by_side import look
from tests.support.trainer_runs import ROOT
from trainer.quickstart.scenes import (
    COLORS,
    LETTERS,
    LOOK_ALIKES,
    OPTIONS,
    SHAPES,
    SIDES,
    SIZE,
    Care,
    Question,
    Scene,
    Thing,
    all_halves,
    all_scenes,
    careless_answer,
    careless_scene,
    draw_scene,
    is_heldout,
    questions_of,
    render,
    write_blank,
    write_pairs,
    write_shuffled,
)
from trainer.quickstart.words import INKS

FOLDER = ROOT / "assets" / "pair_quickstart"
SCENE = Scene(Thing("red", "disc"), Thing("blue", "bar"))
CAREFUL = Care(look_alike=0, color=0, shape=0, order=0, answer=0)


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scene_of(caption: str) -> Scene:
    words = caption.split()
    return Scene(Thing(words[0], words[1]), Thing(words[3], words[4]))


def pixels_of(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def test_a_scene_says_what_is_drawn_and_asked() -> None:
    assert SCENE.prompt == "draw red disc left blue bar right"
    asked = {question.text: question.answer for question in questions_of(SCENE)}
    colors, shapes = "A red B green C blue D orange E purple F black", "A square B disc C bar D cross E ring F plank"
    assert asked == {
        f"what color left ? {colors}": "A",
        f"what shape left ? {shapes}": "B",
        f"what color right ? {colors}": "C",
        f"what shape right ? {shapes}": "C",
    }


def test_both_parts_of_the_split_have_every_kind_of_scene() -> None:
    parts = [all_scenes(heldout=heldout) for heldout in (True, False)]
    assert [len(part) for part in parts] == [278, 1018]
    assert all(is_heldout(scene) for scene in parts[0]) and not set(parts[0]) & set(parts[1])
    for part in parts:
        # Equal things, things that have a colour or a shape in common, and things that have nothing in common.
        kinds = Counter((s.left.color == s.right.color, s.left.shape == s.right.shape) for s in part)
        assert len(kinds) == 4 and min(kinds.values()) >= 10
        things = {(side, str(getattr(scene, side))) for scene in part for side in SIDES}
        assert len(things) == len(SIDES) * len(COLORS) * len(SHAPES)


def test_the_reward_sees_in_every_half_what_was_drawn() -> None:
    wanted = [(color, shape) for color in COLORS for shape in SHAPES for _ in range(3)]
    assert [look(Image.fromarray(half)) for half in all_halves()] == wanted


def test_an_image_shows_each_thing_on_its_side_and_nothing_else() -> None:
    pixels = render(SCENE, random.Random(0))
    assert pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8
    for side, half in zip(SIDES, np.split(pixels, 2, axis=1), strict=True):
        inks = {tuple(map(int, pixel)) for pixel in half.reshape(-1, 3)} - {(255, 255, 255)}
        assert inks == {INKS[getattr(SCENE, side).color]}


def test_careless_people_are_as_careless_as_is_said() -> None:
    rng = random.Random(0)
    care = Care(look_alike=0.1, color=0.6, shape=0.5, order=0.0, answer=0.4)
    said = [careless_scene(SCENE, care, rng) for _ in range(4000)]
    assert not any(is_heldout(scene) for scene in said)
    alike = sum(scene.left.color == LOOK_ALIKES["red"] for scene in said) / 4000
    right = sum(scene.left.color == "red" for scene in said) / 4000
    assert alike == pytest.approx(0.1 + 0.6 / 6, abs=0.05) and right == pytest.approx(0.3 + 0.6 / 6, abs=0.05)
    assert sum(scene.right.shape == "bar" for scene in said) / 4000 == pytest.approx(0.5 + 0.5 / 6, abs=0.05)
    letters = Counter(careless_answer(Question("left", "color", "A"), care, rng) for _ in range(4000))
    assert letters["A"] / 4000 == pytest.approx(0.5 + 0.4 / 6, abs=0.03)
    assert letters[LETTERS[COLORS.index("orange")]] / 4000 == pytest.approx(0.1 + 0.4 / 6, abs=0.03)
    shapes = Counter(careless_answer(Question("left", "shape", "A"), care, rng) for _ in range(4000))
    assert shapes["A"] / 4000 == pytest.approx(0.6 + 0.4 / 6, abs=0.03)


def test_careful_people_say_what_is_there_and_the_order_alone_can_be_wrong() -> None:
    rng = random.Random(0)
    assert careless_scene(SCENE, CAREFUL, rng) == SCENE
    scene = Scene(Thing("red", "disc"), Thing("green", "square"))
    said = {careless_scene(scene, Care(0, 0, 0, 0.5, 0), rng) for _ in range(50)}
    assert said == {scene, Scene(scene.right, scene.left)}


def test_a_scene_that_is_drawn_is_of_the_wanted_part() -> None:
    rng = random.Random(1)
    assert all(is_heldout(draw_scene(rng, heldout=True)) for _ in range(20))
    assert not any(is_heldout(draw_scene(rng, heldout=False)) for _ in range(20))


def test_the_files_come_from_their_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_pairs(tmp_path / name, 12, heldout=False, seed=4)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_blank(tmp_path / "blank", tmp_path / "a")
    write_shuffled(tmp_path / "shuffled", tmp_path / "a", seed=1)
    before, white, mixed = (rows_of(tmp_path / name) for name in ("a", "blank", "shuffled"))
    assert all((pixels_of(row["understand_ann"]["image"]) == 255).all() for row in white)  # type: ignore[index]
    for name in ("question", "answer"):
        assert [row["understand_ann"][name] for row in white] == [  # type: ignore[index]
            row["understand_ann"][name]  # type: ignore[index]
            for row in before
        ]
    drawn = [[row["generate_ann"]["prompt"] for row in rows] for rows in (before, mixed)]  # type: ignore[index]
    assert drawn[0] != drawn[1] and sorted(drawn[0]) == sorted(drawn[1])


def test_the_shipped_files_are_pairs_whose_answers_the_images_show() -> None:
    for name, count, heldout in (("train", 1024, False), ("heldout", 256, True)):
        rows = rows_of(FOLDER / f"{name}.jsonl")
        assert len(rows) == count
        shares = Counter(row["similarity"] for row in rows)
        assert shares[1.0] / count == (1.0 if heldout else pytest.approx(0.5, abs=0.05))
        for row in rows:
            asked, drawn = row["understand_ann"], row["generate_ann"]
            assert isinstance(asked, dict) and isinstance(drawn, dict)
            scene, target = scene_of(asked["prompt"]), scene_of(drawn["prompt"].removeprefix("draw "))
            assert is_heldout(scene) == is_heldout(target) == heldout
            assert (drawn["left"], drawn["right"]) == (str(target.left), str(target.right))
            looks = [(s.left.color, s.left.shape, s.right.color, s.right.shape) for s in (scene, target)]
            assert row["similarity"] == sum(a == b for a, b in zip(*looks, strict=True)) / 4
            pixels = pixels_of(asked["image"])
            seen = dict(zip(SIDES, (look(Image.fromarray(half)) for half in np.split(pixels, 2, axis=1)), strict=True))
            kind, side = asked["question"].split()[1:3]
            word = OPTIONS[kind][LETTERS.index(asked["answer"])]
            assert seen[side][("color", "shape").index(kind)] == word
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000
