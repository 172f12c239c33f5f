"""Cards: the synthetic images of the small VLM's quickstart, what is asked about them, and how careless people answer.

A card is 48x48 RGB: two to four things, one in a quarter, each a shape in one of six inks, no two alike. What is asked: the
colour of a thing, what stands beside it, how many things have a shape. Only questions are asked whose careless answer is
wrong, so that a model which imitates careless answers has something to learn from rewards.

A scene belongs to the held-out part when its hash says so: no training may ever see it.

    python -m trainer.quickstart.cards FOLDER    writes train.jsonl, heldout.jsonl and blank.jsonl
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw

from trainer.quickstart.words import INKS

SIZE = 48
HELDOUT_SHARE = 16  # one scene in 16 is held out
SHAPES = {"disc": "discs", "bar": "bars", "cross": "crosses", "ring": "rings"}  # with the plurals
PLACES = ("tl", "tr", "bl", "br")  # top left, top right, bottom left, bottom right: reading order
COUNTS = (0, 1, 2, 3)
# The place that stands on the named side of another.
NEIGHBOURS = {
    "left": {"tr": "tl", "br": "bl"},
    "right": {"tl": "tr", "bl": "br"},
    "above": {"bl": "tl", "br": "tr"},
    "below": {"tl": "bl", "tr": "br"},
}
QUESTIONS_OF_SIDES = {
    "left": "what is left of the {} ?",
    "right": "what is right of the {} ?",
    "above": "what is above the {} ?",
    "below": "what is below the {} ?",
}
KINDS = ("color", "relation", "count")
JITTER = 3  # pixels from a quarter's middle, either way
RADII = (6, 8)

Kind = Literal["color", "relation", "count"]


@dataclass(frozen=True)
class Thing:
    """A shape in an ink, in a quarter of the card."""

    place: str
    color: str
    shape: str


Scene = tuple[Thing, ...]  # in reading order


@dataclass(frozen=True)
class Card:
    """A scene and what is asked about it.

    Attributes:
        answer: the right one, in words of the vocabulary.
        careless: what one says who does not look well. It is wrong.
        thought: goes from thing to thing, then says what was asked; each word needs one look at the image or at earlier words.
    """

    scene: Scene
    kind: Kind
    question: str
    answer: str
    careless: str
    thought: str


def caption(scene: Scene) -> str:
    """All that is on the card, in reading order: `tl red disc br blue bar`."""
    return " ".join(f"{thing.place} {thing.color} {thing.shape}" for thing in scene)


def is_heldout(scene: Scene) -> bool:
    """Whether no training may ever see this scene. Depends on the scene alone."""
    return hashlib.sha256(caption(scene).encode()).digest()[0] % HELDOUT_SHARE == 0


def draw_scene(rng: random.Random, *, heldout: bool) -> Scene:
    """A random scene of the wanted part of the split."""
    while True:
        places = sorted(rng.sample(PLACES, rng.choice((2, 3, 4))), key=PLACES.index)
        looks = rng.sample([(color, shape) for color in INKS for shape in SHAPES], len(places))
        scene = tuple(Thing(place, color, shape) for place, (color, shape) in zip(places, looks, strict=True))
        if is_heldout(scene) == heldout:
            return scene


def draw_card(rng: random.Random, *, heldout: bool) -> Card:
    """A random card: the kinds of question are equally frequent, and so are the right counts."""
    kind: Kind = rng.choice(("color", "relation", "count"))
    count = rng.choice(COUNTS)  # of a count's answer, chosen before the scene so that no count is rarer
    while True:
        scene = draw_scene(rng, heldout=heldout)
        if kind == "count":
            cards = [card for card in _counts(scene) if card.answer == str(count)]
        else:
            cards = _colors(scene) if kind == "color" else _relations(scene)
        if cards:
            return rng.choice(cards)


def _colors(scene: Scene) -> list[Card]:
    """Careless: the colour of the first thing on the card."""
    first = scene[0]
    return [
        Card(
            scene,
            "color",
            f"what color is the {thing.shape} ?",
            thing.color,
            first.color,
            f"{thing.shape} {_search(scene, thing)} {thing.color}",
        )
        for thing in _unique(scene)
        if thing.color != first.color
    ]


def _relations(scene: Scene) -> list[Card]:
    """Careless: the thing that was asked about."""
    at = {thing.place: thing for thing in scene}
    cards = []
    for thing in _unique(scene):
        for side, neighbours in NEIGHBOURS.items():
            other = at.get(neighbours.get(thing.place, ""))
            if other is None:
                continue
            answer = f"{other.color} {other.shape}"
            thought = f"{thing.shape} {_search(scene, thing)} {side} {other.place} {answer}"
            question = QUESTIONS_OF_SIDES[side].format(thing.shape)
            cards.append(Card(scene, "relation", question, answer, f"{thing.color} {thing.shape}", thought))
    return cards


def _counts(scene: Scene) -> list[Card]:
    """Careless: all things are counted."""
    cards = []
    for shape, plural in SHAPES.items():
        found = [thing.place for thing in scene if thing.shape == shape]
        if len(found) == len(scene):
            continue
        # From thing to thing: what it is, and how many there are so far.
        steps = [
            f"{thing.place} {thing.shape} {sum(each.shape == shape for each in scene[: n + 1])}"
            for n, thing in enumerate(scene)
        ]
        thought = " ".join((plural, *steps))
        cards.append(Card(scene, "count", f"how many {plural} ?", str(len(found)), str(len(scene)), thought))
    return cards


def _search(scene: Scene, wanted: Thing) -> str:
    """From thing to thing in reading order, up to the one that is asked about: `tl disc tr bar`."""
    return " ".join(f"{thing.place} {thing.shape}" for thing in scene[: scene.index(wanted) + 1])


def _unique(scene: Scene) -> list[Thing]:
    """The things whose shape stands on the card once."""
    shapes = [thing.shape for thing in scene]
    return [thing for thing in scene if shapes.count(thing.shape) == 1]


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw a card: sizes and places vary by a few pixels."""
    image = Image.new("RGB", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(image)
    for thing in scene:
        column, row = PLACES.index(thing.place) % 2, PLACES.index(thing.place) // 2
        x = SIZE // 4 + column * SIZE // 2 + rng.randint(-JITTER, JITTER)
        y = SIZE // 4 + row * SIZE // 2 + rng.randint(-JITTER, JITTER)
        _draw_shape(draw, thing.shape, x, y, rng.randint(*RADII), INKS[thing.color])
    return image


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: int, y: int, radius: int, ink: tuple[int, int, int]) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "disc":
        draw.ellipse(box, fill=ink)
    elif shape == "ring":
        draw.ellipse(box, outline=ink, width=3)
    elif shape == "bar":
        draw.rectangle((x - radius, y - 2, x + radius, y + 2), fill=ink)
    else:
        draw.rectangle((x - radius, y - 1, x + radius, y + 1), fill=ink)
        draw.rectangle((x - 1, y - radius, x + 1, y + radius), fill=ink)


def write_questions(path: Path, count: int, *, heldout: bool, seed: int, blank: bool = False) -> None:
    """A file of `count` different questions, a JSON object a line, that holds its images as data URLs.

    Args:
        blank: the same questions, and every image is white: who answers them right has guessed.
    """
    rng = random.Random(seed)
    cards: dict[tuple[Scene, str], Card] = {}
    while len(cards) < count:
        card = draw_card(rng, heldout=heldout)
        cards.setdefault((card.scene, card.question), card)
    rows = [
        {
            "question": card.question,
            "answer": card.answer,
            "kind": card.kind,
            "thought": card.thought,
            "scene": caption(card.scene),
            "image": _data_url(render(() if blank else card.scene, rng)),
        }
        for card in cards.values()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _data_url(image: Image.Image) -> str:
    """The image as PNG with a palette: a card has at most five colours, so nothing is lost and 250 bytes are enough."""
    file = io.BytesIO()
    image.quantize(8).save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the question files of the small VLM's quickstart.")
    parser.add_argument("folder", type=Path, help="Where the three files go.")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_questions(folder / "train.jsonl", 2048, heldout=False, seed=0)
    write_questions(folder / "heldout.jsonl", 384, heldout=True, seed=1)
    write_questions(folder / "blank.jsonl", 384, heldout=True, seed=1, blank=True)


if __name__ == "__main__":
    main()
