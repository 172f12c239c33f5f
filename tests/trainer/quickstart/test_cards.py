"""Cards: what is asked has one right answer that can be read off the picture, and the careless one is never right."""

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

from tests.support.trainer_runs import ROOT
from trainer.quickstart.cards import (
    COUNTS,
    NEIGHBOURS,
    PLACES,
    SHAPES,
    SIZE,
    Card,
    Scene,
    Thing,
    _colors,
    _counts,
    _relations,
    caption,
    draw_card,
    draw_scene,
    is_heldout,
    render,
    write_questions,
)
from trainer.quickstart.words import INKS


@pytest.fixture(scope="module")
def cards() -> list[Card]:
    rng = random.Random(5)
    return [draw_card(rng, heldout=False) for _ in range(600)]


def look(card: Card) -> str:
    """The right answer, found by going over the scene again in another way than the cards do."""
    at = {thing.place: thing for thing in card.scene}
    words = card.question.split()
    if card.kind == "count":
        shape = next(shape for shape, plural in SHAPES.items() if plural in words)
        return str(sum(thing.shape == shape for thing in card.scene))
    (asked,) = [thing for thing in card.scene if thing.shape == words[-2]]
    if card.kind == "color":
        return asked.color
    column, row = PLACES.index(asked.place) % 2, PLACES.index(asked.place) // 2
    side = next(word for word in words if word in NEIGHBOURS)
    column += {"left": -1, "right": 1}.get(side, 0)
    row += {"above": -1, "below": 1}.get(side, 0)
    assert 0 <= column <= 1 and 0 <= row <= 1
    thing = at[PLACES[2 * row + column]]
    return f"{thing.color} {thing.shape}"


def test_answers_are_right_and_careless_ones_are_not(cards: list[Card]) -> None:
    for card in cards:
        assert card.answer == look(card)
        assert card.careless != card.answer
        assert card.thought.endswith(card.answer)


@pytest.mark.parametrize(
    ("question", "answer", "careless", "thought"),
    [
        ("what color is the bar ?", "blue", "red", "bar tl disc bl ring br bar blue"),
        ("what is left of the bar ?", "green ring", "blue bar", "bar tl disc bl ring br bar left bl green ring"),
        ("what is below the disc ?", "green ring", "red disc", "disc tl disc below bl green ring"),
        ("how many rings ?", "1", "3", "rings tl disc 0 bl ring 1 br bar 1"),
        ("how many crosses ?", "0", "3", "crosses tl disc 0 bl ring 0 br bar 0"),
    ],
)
def test_a_card_says_what_is_thought_and_answered(question: str, answer: str, careless: str, thought: str) -> None:
    wanted = (Thing("tl", "red", "disc"), Thing("bl", "green", "ring"), Thing("br", "blue", "bar"))
    asked = _all_questions(wanted)[question]
    assert (asked.answer, asked.careless, asked.thought) == (answer, careless, thought)


def _all_questions(scene: Scene) -> dict[str, Card]:
    return {card.question: card for card in (*_colors(scene), *_relations(scene), *_counts(scene))}


def test_kinds_and_counts_are_equally_frequent(cards: list[Card]) -> None:
    kinds = Counter(card.kind for card in cards)
    assert min(kinds.values()) > 150 and len(kinds) == 3
    counts = Counter(card.answer for card in cards if card.kind == "count")
    assert set(counts) == {str(count) for count in COUNTS} and min(counts.values()) > 30


def test_the_split_goes_by_the_scene_alone(cards: list[Card]) -> None:
    assert not any(is_heldout(card.scene) for card in cards)
    rng = random.Random(1)
    held = [draw_scene(rng, heldout=True) for _ in range(5)]
    assert all(is_heldout(scene) for scene in held)
    rng = random.Random(2)
    scenes = [draw_scene(rng, heldout=False) for _ in range(5)]
    assert len({caption(scene) for scene in scenes}) == 5
    for scene in scenes:  # two to four things, no two alike, in reading order
        assert 2 <= len(scene) <= 4 and len({(t.color, t.shape) for t in scene}) == len(scene)
        assert [t.place for t in scene] == sorted((t.place for t in scene), key=PLACES.index)


def test_a_picture_shows_each_thing_in_its_quarter_and_nothing_else() -> None:
    rng = random.Random(3)
    for _ in range(30):
        scene = draw_scene(rng, heldout=False)
        pixels = np.asarray(render(scene, rng))
        assert pixels.shape == (SIZE, SIZE, 3)
        at = {thing.place: thing for thing in scene}
        for number, place in enumerate(PLACES):
            column, row, half = number % 2, number // 2, SIZE // 2
            quarter = pixels[row * half : (row + 1) * half, column * half : (column + 1) * half].reshape(-1, 3)
            inks = {tuple(map(int, pixel)) for pixel in quarter} - {(255, 255, 255)}
            assert inks == ({INKS[at[place].color]} if place in at else set())


def test_the_files_hold_their_pictures_and_come_from_their_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_questions(tmp_path / name, 3, heldout=False, seed=4)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    for row in map(json.loads, (tmp_path / "a").read_text(encoding="utf-8").splitlines()):
        start, _, data = row["image"].partition(",")
        assert start == "data:image/png;base64"
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).reshape(-1, 3)
        inks = {INKS[word] for word in row["scene"].split() if word in INKS}
        assert {tuple(map(int, pixel)) for pixel in pixels} == inks | {(255, 255, 255)}


def test_the_shipped_files_keep_their_scenes_apart() -> None:
    folder = ROOT / "assets" / "vlm_quickstart"
    rows = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "heldout")
    }
    assert [len(each) for each in rows.values()] == [2048, 384]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    for name, each in rows.items():
        for row in each:
            words = row["scene"].split()
            scene = tuple(Thing(*words[i : i + 3]) for i in range(0, len(words), 3))
            assert is_heldout(scene) == (name == "heldout")
