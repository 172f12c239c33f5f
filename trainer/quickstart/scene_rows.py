"""Rows of scenes for packed training: what is to be drawn or changed in words, and pictures, in the JSON files of UniReason's users.

Four kinds of row, each about scenes of `trainer.quickstart.scenes`:

    t2i          draw red disc left blue bar right                         the picture
    edit         make left green               a picture                   the picture with its left thing in green
    t2i_reason   draw like blood coin left like sea pole right             left red disc right blue bar, the picture
    edit_reason  make left like grass          a picture                   left red disc becomes green disc, the picture

The third needs to know what each word is like; the fourth that, and a look: the thing itself stands in the picture alone. A held-out
scene is never drawn or shown in training, nor named. An edit that is held out ends at a held-out scene; it starts from any other.

    python -m trainer.quickstart.scene_rows FOLDER    writes the pictures and all files of the recipes
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.quickstart.scenes import (
    COLORS,
    KINDS,
    OPTIONS,
    SHAPES,
    SIDES,
    Care,
    Kind,
    Scene,
    all_scenes,
    careless_scene,
    is_heldout,
    render,
)

PICTURES = "scenes"
FORMATS = ("t2i", "edit", "t2i_reason", "edit_reason")
# What has this colour, or this shape.
FACTS = {
    "red": "blood",
    "green": "grass",
    "blue": "sea",
    "orange": "carrot",
    "black": "coal",
    "purple": "plum",
    "square": "tile",
    "disc": "coin",
    "bar": "pole",
    "cross": "windmill",
    "ring": "donut",
    "plank": "shelf",
}
CARE = Care(
    look_alike=0.1, color=0.55, shape=0.55, order=0.1, answer=0.0
)  # of careless.*, as for the other quickstarts' bases
WRONG_SIDE = 0.4  # share of careless instructions that name the other thing
WORDS = tuple(
    dict.fromkeys(
        ("draw", "make", "like", "becomes", *SIDES, *COLORS, *SHAPES, *(FACTS[w] for w in (*COLORS, *SHAPES)))
    )
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Edit:
    """One thing of a scene gets another colour or another shape."""

    source: Scene
    side: str
    kind: Kind
    word: str

    @property
    def target(self) -> Scene:
        return replace(self.source, **{self.side: replace(getattr(self.source, self.side), **{self.kind: self.word})})

    @property
    def instruction(self) -> str:
        return f"make {self.side} {self.word}"

    @property
    def riddle(self) -> str:
        return f"make {self.side} like {FACTS[self.word]}"

    @property
    def thought(self) -> str:
        return f"{self.side} {getattr(self.source, self.side)} becomes {getattr(self.target, self.side)}"


def riddle(scene: Scene) -> str:
    """A prompt that names a scene by what its colours and shapes are like."""
    left, right = (
        f"like {FACTS[getattr(scene, side).color]} {FACTS[getattr(scene, side).shape]} {side}" for side in SIDES
    )
    return f"draw {left} {right}"


def thought(scene: Scene) -> str:
    """What the riddle comes to, in a form of its own."""
    return f"left {scene.left} right {scene.right}"


def draw_edit(rng: random.Random, *, heldout: bool) -> Edit:
    """A random edit of a scene that is not held out; where it ends is a scene of the wanted part of the split."""
    while True:  # the source is drawn again, too: some scenes have no neighbour that is held out
        side, kind = rng.choice(SIDES), rng.choice(KINDS)
        edit = Edit(rng.choice(_sources()), side, kind, rng.choice(OPTIONS[kind]))
        if edit.target != edit.source and is_heldout(edit.target) == heldout:
            return edit


@cache
def _sources() -> list[Scene]:
    return all_scenes(heldout=False)


def careless_edit(edit: Edit, care: Care, rng: random.Random) -> Edit:
    """The edit as a careless person says it: the same source, another word or the other side. Never one that ends at a held-out
    scene."""
    wrong = {"color": care.color, "shape": care.shape}[edit.kind]
    while True:
        said = edit
        if rng.random() < wrong:
            said = replace(said, word=rng.choice(OPTIONS[edit.kind]))
        if rng.random() < WRONG_SIDE:
            said = replace(said, side=SIDES[1 - SIDES.index(edit.side)])
        if not is_heldout(said.target):
            return said


def picture(scene: Scene) -> str:
    """Where the picture of a scene lies, from the folder of the files."""
    return f"{PICTURES}/{scene.caption.replace(' ', '_')}.png"


def t2i_row(scene: Scene, said: Scene | None = None) -> Row:
    """A scene and the words for it, which are those of another one where people are careless."""
    return {"type": "T2I_SFT", "txt": (said or scene).prompt, "image": "", "image_path": picture(scene)}


def edit_row(edit: Edit, said: Edit | None = None) -> Row:
    """An edit and the words for it, likewise."""
    return {
        "instruction": (said or edit).instruction,
        "input_image": picture(edit.source),
        "output_image": picture(edit.target),
    }


def t2i_reason_row(scene: Scene) -> Row:
    return {"txt": riddle(scene), "Reasoning": thought(scene), "image_path": picture(scene)}


def edit_reason_row(edit: Edit) -> Row:
    return {
        "instruction": edit.riddle,
        "reasoning": edit.thought,
        "input_image": picture(edit.source),
        "output_image": picture(edit.target),
    }


def drawn_prompt(scene: Scene, text: str, targets: Sequence[str] = ()) -> Row:
    """A prompt to draw a scene, with what the reward `side_by_side` looks for and what should be thought before."""
    return _prompt(text, scene, targets)


def edited_prompt(edit: Edit, text: str, targets: Sequence[str] = ()) -> Row:
    """A prompt to edit a picture, likewise: the thing that is not named has to stay."""
    more = {"edited": edit.side, "kept": SIDES[1 - SIDES.index(edit.side)]}
    return {**_prompt(text, edit.target, targets, more), "source_images": [picture(edit.source)]}


def _prompt(text: str, scene: Scene, targets: Sequence[str], more: Row | None = None) -> Row:
    row: Row = {"prompt": text, "metadata": {"left": str(scene.left), "right": str(scene.right), **(more or {})}}
    return {**row, "targets": list(targets)} if targets else row


def edits(count: int, seed: int, *, heldout: bool) -> list[Edit]:
    """Different edits, `count` of them."""
    rng = random.Random(seed)
    found: dict[Edit, None] = {}
    while len(found) < count:
        found[draw_edit(rng, heldout=heldout)] = None
    return list(found)


def shuffled(scenes: Sequence[Scene], seed: int) -> list[Scene]:
    """The same scenes in a random order."""
    mixed = list(scenes)
    random.Random(seed).shuffle(mixed)
    return mixed


def write_pictures(folder: Path) -> None:
    """The picture of every scene, held-out ones, too, each thing in the middle of its half."""
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    for scene in (*all_scenes(heldout=False), *all_scenes(heldout=True)):
        image = Image.fromarray(render(scene, random.Random(0), jitter=0))
        # A scene has at most three colours, so a palette loses nothing.
        image.quantize(4).save(folder / picture(scene), format="PNG", optimize=True)


def write_training(folder: Path, count: int) -> None:
    """Rows to train on: `t2i` and `edit` as JSON arrays, those with reasoning as JSON lines; and what careless people say."""
    scenes = all_scenes(heldout=False)
    _write_array(folder / "t2i.json", [t2i_row(scene) for scene in shuffled(scenes, 0)])
    _write_array(folder / "edit.json", [edit_row(edit) for edit in edits(count, 1, heldout=False)])
    _write_lines(folder / "t2i_reason.jsonl", [t2i_reason_row(scene) for scene in shuffled(scenes, 2)])
    _write_lines(folder / "edit_reason.jsonl", [edit_reason_row(edit) for edit in edits(count, 3, heldout=False)])
    rng = random.Random(4)
    _write_array(folder / "careless_t2i.json", [t2i_row(s, careless_scene(s, CARE, rng)) for s in shuffled(scenes, 5)])
    _write_array(
        folder / "careless_edit.json",
        [edit_row(e, careless_edit(e, CARE, rng)) for e in edits(count, 6, heldout=False)],
    )


def write_heldout(folder: Path, count: int) -> None:
    """Held-out rows whose loss is measured, `heldout_*`, and the same as prompts that are drawn and scored, `drawn_*`."""
    scenes = shuffled(all_scenes(heldout=True), 7)[:count]
    changed = edits(count, 8, heldout=True)
    _write_array(folder / "heldout_t2i.json", [t2i_row(scene) for scene in scenes])
    _write_array(folder / "heldout_edit.json", [edit_row(edit) for edit in changed])
    _write_lines(folder / "heldout_t2i_reason.jsonl", [t2i_reason_row(scene) for scene in scenes])
    _write_lines(folder / "heldout_edit_reason.jsonl", [edit_reason_row(edit) for edit in changed])
    _write_lines(folder / "drawn_t2i.jsonl", [drawn_prompt(scene, scene.prompt) for scene in scenes])
    _write_lines(folder / "drawn_edit.jsonl", [edited_prompt(edit, edit.instruction) for edit in changed])
    _write_lines(
        folder / "drawn_t2i_reason.jsonl", [drawn_prompt(scene, riddle(scene), [thought(scene)]) for scene in scenes]
    )
    _write_lines(
        folder / "drawn_edit_reason.jsonl", [edited_prompt(edit, edit.riddle, [edit.thought]) for edit in changed]
    )


def write_rl(folder: Path, count: int) -> None:
    """Prompts of scenes that are not held out, to draw and to edit, in one file."""
    scenes = shuffled(all_scenes(heldout=False), 9)[:count]
    _write_lines(folder / "rl_t2i.jsonl", [drawn_prompt(scene, scene.prompt) for scene in scenes])
    _write_lines(
        folder / "rl_edit.jsonl", [edited_prompt(edit, edit.instruction) for edit in edits(count, 10, heldout=False)]
    )


def _write_array(path: Path, rows: Sequence[Row]) -> None:
    text = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f"[\n{text}\n]\n", encoding="utf-8")


def _write_lines(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the files of the quickstart of packed training.")
    parser.add_argument("folder", type=Path, help="Where the files go.")
    folder = parser.parse_args().folder
    write_pictures(folder)
    write_training(folder, 1000)
    write_heldout(folder, 96)
    write_rl(folder, 512)


if __name__ == "__main__":
    main()
