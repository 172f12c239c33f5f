"""Rendered words: the synthetic images of the quickstart, and the split that keeps its held-out words unseen.

An image is 24x48 RGB: a word of 3 or 4 characters in one of six inks on white. A word belongs to the held-out part
when its hash says so, so that neither the pre-training of the base nor the RL prompts can ever contain it.

    python -m trainer.quickstart.words FOLDER    writes train.jsonl and heldout.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HEIGHT, WIDTH = 24, 48
# No look-alikes: 0 O, 1 I, 5 S, 8 B are left out, so that a reader can be right.
ALPHABET = "ACDEFGHJKLMNPQRTUVWXYZ234679"
INKS = {
    "red": (215, 38, 38),
    "green": (20, 140, 60),
    "blue": (35, 75, 205),
    "orange": (240, 130, 0),
    "purple": (130, 40, 160),
    "black": (20, 20, 20),
}
WORD_LENGTHS = (3, 4)
HELDOUT_SHARE = 16  # one word in 16 is held out
FONT_SIZE = 17
_FONTS = ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf")


@dataclass(frozen=True)
class Word:
    """A text and its ink."""

    text: str
    color: str

    @property
    def prompt(self) -> str:
        return f'the word "{self.text}" in {self.color}'


def is_heldout(text: str) -> bool:
    """Whether no training may ever see this word. Depends on the word alone."""
    return hashlib.sha256(text.encode()).digest()[0] % HELDOUT_SHARE == 0


def draw_word(rng: random.Random, *, heldout: bool) -> Word:
    """A random word of the wanted part of the split."""
    while True:
        text = "".join(rng.choice(ALPHABET) for _ in range(rng.choice(WORD_LENGTHS)))
        if is_heldout(text) == heldout:
            return Word(text, rng.choice(tuple(INKS)))


def corrupt(word: Word, rng: random.Random, char_noise: float, color_noise: float) -> Word:
    """A caption as careless people write them: each character wrong with `char_noise`, the ink with `color_noise`.

    A caption that would name a held-out word is drawn again.
    """
    while True:
        text = "".join(
            rng.choice([c for c in ALPHABET if c != old]) if rng.random() < char_noise else old for old in word.text
        )
        if not is_heldout(text):
            break
    color = word.color
    if rng.random() < color_noise:
        color = rng.choice([ink for ink in INKS if ink != word.color])
    return Word(text, color)


def render(word: Word, rng: random.Random) -> Image.Image:
    """Draw a word: regular or bold, centred within a pixel."""
    import matplotlib  # for its fonts; drawing words is for bases and data sets, and a run of a policy needs only their alphabet

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(folder / rng.choice(_FONTS)), FONT_SIZE)
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((0, 0), word.text, font=font)
    x = (WIDTH - (right - left)) / 2 - left + rng.randint(-1, 1)
    y = (HEIGHT - (bottom - top)) / 2 - top + rng.randint(-1, 1)
    draw.text((x, y), word.text, fill=INKS[word.color], font=font)
    return image


def write_prompts(path: Path, count: int, *, heldout: bool, seed: int) -> None:
    """A prompt file of `count` different words."""
    rng = random.Random(seed)
    words: dict[str, Word] = {}
    while len(words) < count:
        word = draw_word(rng, heldout=heldout)
        words.setdefault(word.text, word)
    rows = [
        {"id": f"word-{w.text}", "prompt": w.prompt, "targets": [w.text], "metadata": {"color": w.color}}
        for w in words.values()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the quickstart's prompt files.")
    parser.add_argument("folder", type=Path, help="Where train.jsonl and heldout.jsonl go.")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(folder / "train.jsonl", 2048, heldout=False, seed=0)
    write_prompts(folder / "heldout.jsonl", 192, heldout=True, seed=1)


if __name__ == "__main__":
    main()
