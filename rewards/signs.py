"""Prompts for pictures with words in them, which this program writes itself: no download, no licence but its own.

A prompt is a thing that carries words, the words in double quotes, a place and a style, such as

    A wooden sign that says "QUIET HARBOR", at the edge of a forest, photographed on film

The words of the held-out file are in no prompt of the other: which ones they are depends on the words alone. The same
files come out on every machine.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

TRAIN, HELD_OUT = 4000, 500
FILES = ("train.txt", "test.txt")
_HELD_OUT_SHARE = 8  # one text in 8 is held out
_SEED = 0

_THINGS = (
    *("A wooden sign that says", "A neon sign that reads", "A street sign with the words", "A shop window lettered"),
    *(
        "A chalkboard on which is written",
        "A poster with the title",
        "A book cover with the title",
        "A coffee mug printed",
    ),
    *("A T-shirt printed", "A birthday cake with the icing", "A brick wall painted", "A billboard that advertises"),
    *("A train station board that shows", "A postcard that says", "A wine label that reads", "A jar labelled"),
    *("A handwritten note that says", "A paper bag stamped", "A museum plaque engraved", "A banner that says"),
    *("A menu with the heading", "A van painted with the words", "A doormat that says", "A lighthouse painted"),
    *("A newspaper with the headline", "A ticket printed", "A flag embroidered", "A stone carved with the words"),
    *("A cinema marquee that announces", "A matchbox that reads", "A skateboard painted", "A balloon printed"),
)
_PLACES = (
    *("on a rainy street", "at the edge of a forest", "in a quiet library", "beside a harbor", "in a sunny kitchen"),
    *("on a mountain path", "at a night market", "in an old workshop", "under a bridge", "on a snowy square"),
    *("in a greenhouse", "at a desert gas station", "on a beach at dusk", "in a subway tunnel", "behind a glass door"),
    *("on a rooftop at night", "in a school corridor", "next to a canal", "at a county fair", "in a small bakery"),
)
_STYLES = (
    *(
        "photographed on film",
        "in watercolor",
        "as a flat vector illustration",
        "in soft morning light",
        "as an oil painting",
    ),
    *("in a close-up", "with long shadows", "as a pencil drawing", "in bright colors", "in black and white"),
    *("as a 3D rendering", "seen from below", "in a vintage look", "as a woodcut", "with a blurred background"),
)
_FIRST = (
    *(
        "QUIET",
        "GOLDEN",
        "LITTLE",
        "OPEN",
        "LAST",
        "BRIGHT",
        "HIDDEN",
        "GREEN",
        "WILD",
        "FIRST",
        "SILVER",
        "SLOW",
        "WARM",
    ),
    *("NORTH", "EARLY", "LUCKY", "ROYAL", "SWEET", "BLUE", "GRAND", "HAPPY", "OLD", "FAST", "COZY", "SUNNY", "RED"),
    *(
        "FRESH",
        "BRAVE",
        "LOST",
        "FREE",
        "HONEST",
        "PLAIN",
        "SHARP",
        "TINY",
        "URBAN",
        "WINTER",
        "SUMMER",
        "DAILY",
        "FINAL",
    ),
)
_SECOND = (
    *("HARBOR", "MORNING", "GARDEN", "LANTERN", "BAKERY", "STATION", "RIVER", "CORNER", "MARKET", "THEATER", "COFFEE"),
    *("BRIDGE", "MUSIC", "BOOKS", "FLOWERS", "HONEY", "KITCHEN", "SPIRIT", "VOYAGE", "WINDOW", "ISLAND", "MIRROR"),
    *("ORCHARD", "PAPER", "QUEEN", "ROCKET", "SAILOR", "TIGER", "UMBRELLA", "VALLEY", "WHISPER", "YARD", "ZEBRA"),
    *("CANYON", "DRAGON", "ENGINE", "FOREST", "GALAXY", "HOTEL", "JUNGLE", "KNIGHT", "LAUNDRY", "MEADOW", "NOODLES"),
    *(
        "OCEAN",
        "PIANO",
        "RADIO",
        "STUDIO",
        "TAILOR",
        "VILLAGE",
        "WAGON",
        "BICYCLE",
        "CASTLE",
        "DINER",
        "EAGLE",
        "FERRY",
    ),
)


def is_held_out(text: str) -> bool:
    """Whether no training prompt has this text. Depends on the text alone."""
    return hashlib.sha256(text.encode()).digest()[0] % _HELD_OUT_SHARE == 0


def prompts(*, held_out: bool) -> list[str]:
    """All prompts of a file, each once."""
    rng = random.Random(f"{_SEED} {held_out}")  # a text: its hash is the same on every machine and in every process
    found: dict[str, None] = {}
    while len(found) < (HELD_OUT if held_out else TRAIN):
        text = _text(rng)
        if is_held_out(text) == held_out:
            found[f'{rng.choice(_THINGS)} "{text}", {rng.choice(_PLACES)}, {rng.choice(_STYLES)}'] = None
    return list(found)


def _text(rng: random.Random) -> str:
    """One or two words, or a word with a number: what an OCR can tell from what was asked."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(_SECOND)
    if kind < 0.4:
        return f"{rng.choice(_SECOND)} {rng.randrange(2, 100)}"
    return f"{rng.choice(_FIRST)} {rng.choice(_SECOND)}"


def write(folder: Path) -> None:
    """Write both files, a prompt a line; what is there already is left."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, held_out in zip(FILES, (False, True), strict=True):
        if not (folder / name).exists():
            part = folder / f"{name}.part"
            part.write_text("".join(f"{line}\n" for line in prompts(held_out=held_out)), encoding="utf-8")
            part.replace(folder / name)
