"""Scenes: the synthetic images of the quickstart of pairs, what is asked about them, and how careless people describe them.

A scene is two things side by side on white, 32x32 RGB: each has one of six inks and one of six shapes, so there are 1,296. Both
tasks are about the same scenes: a prompt to draw names both things, a question asks for a colour or a shape of one of them.

A scene belongs to the held-out part when its hash says so: no training may ever see it, as an image or in words.

    python -m trainer.quickstart.scenes FOLDER    writes train.jsonl, heldout.jsonl, blank.jsonl and shuffled.jsonl
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.quickstart.words import INKS

SIZE = 32
HELDOUT_SHARE = 5  # one scene in five is held out
COLORS = tuple(INKS)
SHAPES = ("square", "disc", "bar", "cross", "ring", "plank")
SIDES = ("left", "right")
LETTERS = "ABCDEF"
JITTER = 1  # pixels that a thing may stand beside the middle of its half, either way
EDGE = 12  # pixels of a thing's longer side
# Colours that careless people take for each other.
LOOK_ALIKES = {"red": "orange", "green": "black", "blue": "purple", "orange": "red", "black": "green", "purple": "blue"}

Kind = Literal["color", "shape"]
KINDS: tuple[Kind, ...] = ("color", "shape")
OPTIONS: dict[Kind, tuple[str, ...]] = {"color": COLORS, "shape": SHAPES}
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Thing:
    """A shape in an ink."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Two things side by side."""

    left: Thing
    right: Thing

    @property
    def caption(self) -> str:
        return f"{self.left} left {self.right} right"

    @property
    def prompt(self) -> str:
        """What asks for a drawing of it."""
        return f"draw {self.caption}"


@dataclass(frozen=True)
class Question:
    """What is asked about a scene, with the letter of the right option. Options are always in the same order."""

    side: str
    kind: Kind
    answer: str

    @property
    def text(self) -> str:
        options = " ".join(f"{letter} {word}" for letter, word in zip(LETTERS, OPTIONS[self.kind], strict=True))
        return f"what {self.kind} {self.side} ? {options}"


def is_heldout(scene: Scene) -> bool:
    """Whether no training may ever see this scene. Depends on the scene alone."""
    return hashlib.sha256(scene.caption.encode()).digest()[0] % HELDOUT_SHARE == 0


def all_scenes(*, heldout: bool) -> list[Scene]:
    """Every scene of the wanted part of the split, in a fixed order."""
    things = [Thing(color, shape) for color in COLORS for shape in SHAPES]
    scenes = (Scene(left, right) for left in things for right in things)
    return [scene for scene in scenes if is_heldout(scene) == heldout]


def draw_scene(rng: random.Random, *, heldout: bool) -> Scene:
    """A random scene of the wanted part of the split."""
    while True:
        scene = Scene(*(Thing(rng.choice(COLORS), rng.choice(SHAPES)) for _ in SIDES))
        if is_heldout(scene) == heldout:
            return scene


def questions_of(scene: Scene) -> list[Question]:
    """The four questions about a scene: colour and shape, left and right."""
    return [
        Question(side, kind, LETTERS[OPTIONS[kind].index(getattr(getattr(scene, side), kind))])
        for side in SIDES
        for kind in KINDS
    ]


def render(scene: Scene, rng: random.Random, jitter: int = JITTER) -> Pixels:
    """(32, 32, 3) uint8: each thing stands up to `jitter` pixels beside the middle of its half."""
    halves = (_half(getattr(scene, side), rng.randint(-jitter, jitter)) for side in SIDES)
    return np.concatenate(list(halves), axis=1)


def all_halves() -> Iterator[Pixels]:
    """(32, 16, 3) uint8: every half that an image can have."""
    for color in COLORS:
        for shape in SHAPES:
            for shift in range(-JITTER, JITTER + 1):
                yield _half(Thing(color, shape), shift)


def blank() -> Pixels:
    """An image without anything on it."""
    return np.full((SIZE, SIZE, 3), 255, np.uint8)


def _half(thing: Thing, shift: int) -> Pixels:
    half = np.full((SIZE, SIZE // 2, 3), 255, np.uint8)
    top, left = (SIZE - EDGE) // 2, (SIZE // 2 - EDGE) // 2 + shift
    half[top : top + EDGE, left : left + EDGE][_SILHOUETTES[thing.shape]] = INKS[thing.color]
    return half


def _silhouettes() -> dict[str, npt.NDArray[np.bool_]]:
    """Which pixels of a square of EDGE x EDGE each shape covers."""
    middle = (np.arange(EDGE) + 0.5) / EDGE * 2 - 1  # of each pixel, from -1 to 1
    across, down = np.abs(middle)[None, :], np.abs(middle)[:, None]
    radius = np.sqrt(across**2 + down**2)
    third = 1 / 3
    return {
        "square": np.ones((EDGE, EDGE), np.bool_),
        "disc": radius <= 1,
        "bar": np.broadcast_to(across <= third, (EDGE, EDGE)),
        "cross": (across <= third) | (down <= third),
        "ring": (radius <= 1) & (radius >= 0.5),
        "plank": np.broadcast_to(down <= third, (EDGE, EDGE)),
    }


_SILHOUETTES = _silhouettes()


@dataclass(frozen=True)
class Care:
    """How careless people describe scenes and answer questions: shares.

    Attributes:
        look_alike: colours of a caption that are taken for another; the same share of answers to questions about colours.
        color, shape: of a caption, that are any at all.
        order: captions whose things change places.
        answer: answers that are any letter at all.
    """

    look_alike: float
    color: float
    shape: float
    order: float
    answer: float


def careless_scene(scene: Scene, care: Care, rng: random.Random) -> Scene:
    """The scene as a careless person describes it. Never a held-out one: such a description is made again."""
    while True:
        things = [_careless_thing(getattr(scene, side), care, rng) for side in SIDES]
        said = Scene(*(reversed(things) if rng.random() < care.order else things))
        if not is_heldout(said):
            return said


def _careless_thing(thing: Thing, care: Care, rng: random.Random) -> Thing:
    drawn = rng.random()
    if drawn < care.look_alike:
        thing = replace(thing, color=LOOK_ALIKES[thing.color])
    elif drawn < care.look_alike + care.color:
        thing = replace(thing, color=rng.choice(COLORS))
    return replace(thing, shape=rng.choice(SHAPES)) if rng.random() < care.shape else thing


def careless_answer(question: Question, care: Care, rng: random.Random) -> str:
    """The letter that a careless person says."""
    letter, drawn = question.answer, rng.random()
    if drawn < care.answer:
        letter = rng.choice(LETTERS)
    elif drawn < care.answer + care.look_alike and question.kind == "color":
        letter = LETTERS[COLORS.index(LOOK_ALIKES[COLORS[LETTERS.index(letter)]])]
    return letter


def write_pairs(path: Path, count: int, *, heldout: bool, seed: int, aligned: float = 0.5) -> None:
    """A file of `count` different pairs, a JSON object a line, that holds its images as data URLs.

    Args:
        aligned: share of pairs that ask about the scene that is drawn. Of the others one thing is another one: in its colour or
            its shape (similarity .75), or in both (.5).
    """
    rng = random.Random(seed)
    scenes = all_scenes(heldout=heldout)
    rows: dict[tuple[Scene, Question], dict[str, Any]] = {}
    while len(rows) < count:
        asked = rng.choice(scenes)
        question = rng.choice(questions_of(asked))
        if (asked, question) in rows:
            continue
        drawn, similarity = (asked, 1.0) if rng.random() < aligned else _near(asked, rng, heldout=heldout)
        rows[asked, question] = pair_row(asked, question, drawn, similarity, render(asked, rng))
    _write(path, list(rows.values()))


def _near(scene: Scene, rng: random.Random, *, heldout: bool) -> tuple[Scene, float]:
    """A scene of the same part of the split that differs in one thing, and the share of four looks that they have in common."""
    while True:
        side = rng.choice(SIDES)
        before = getattr(scene, side)
        after = Thing(rng.choice(COLORS), rng.choice(SHAPES))
        other = replace(scene, **{side: after})
        if after != before and is_heldout(other) == heldout:
            return other, 1 - ((after.color != before.color) + (after.shape != before.shape)) / 4


def pair_row(asked: Scene, question: Question, drawn: Scene, similarity: float, image: Pixels) -> dict[str, Any]:
    """A pair as PairUni writes it; what is drawn is also named thing by thing, for the reward."""
    return {
        "similarity": similarity,
        "understand_ann": {
            "image": data_url(image),
            "prompt": asked.caption,
            "question": question.text,
            "answer": question.answer,
        },
        "generate_ann": {"prompt": drawn.prompt, "left": str(drawn.left), "right": str(drawn.right)},
    }


def data_url(image: Pixels) -> str:
    """The image as PNG with a palette: a scene has at most three colours, so nothing is lost and some 150 bytes are enough."""
    file = io.BytesIO()
    Image.fromarray(image).quantize(4).save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_blank(path: Path, pairs: Path) -> None:
    """The same questions about blank images: who answers them right has guessed."""
    url = data_url(blank())
    _write(path, [{**row, "understand_ann": {**row["understand_ann"], "image": url}} for row in _read(pairs)])


def write_shuffled(path: Path, pairs: Path, seed: int) -> None:
    """The same questions and the same prompts, put together at random: pairs that have no more in common than chance gives."""
    rows = _read(pairs)
    drawn = [row["generate_ann"] for row in rows]
    random.Random(seed).shuffle(drawn)
    _write(path, [{**row, "generate_ann": other} for row, other in zip(rows, drawn, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the files of pairs of the quickstart that draws and answers.")
    parser.add_argument("folder", type=Path, help="Where the four files go.")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_pairs(folder / "train.jsonl", 1024, heldout=False, seed=0)
    write_pairs(folder / "heldout.jsonl", 256, heldout=True, seed=1, aligned=1.0)
    write_blank(folder / "blank.jsonl", folder / "heldout.jsonl")
    write_shuffled(folder / "shuffled.jsonl", folder / "train.jsonl", seed=2)


if __name__ == "__main__":
    main()
