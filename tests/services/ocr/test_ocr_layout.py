"""The reading order, on boxes made by hand and on pictures that the real engine reads."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import pytest
from PIL import Image, ImageDraw, ImageFont

from services.kit.scorer import Item, Score
from services.ocr.engines import Box, EngineOptions
from services.ocr.layout import reading_orders
from services.ocr.scorer import OcrScorer

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
Word = tuple[str, float, float, float]  # text, left end of its baseline, height of its letters


def box(text: str, left: float, baseline: float, size: float, tilt: float = 0.0) -> Box:
    """About what a detector makes of a word, turned about the picture's origin by `tilt` degrees."""
    width, cos, sin = 0.6 * size * len(text), math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    corners = [(left, baseline - size), (left + width, baseline - size), (left + width, baseline), (left, baseline)]
    a, b, c, d = ((x * cos - y * sin, x * sin + y * cos) for x, y in corners)
    return (a, b, c, d)


def orders(words: list[Word], tilt: float = 0.0) -> list[str]:
    """The orders as sentences. The boxes come in the opposite one, as from an engine without any."""
    words = words[::-1]
    found = reading_orders([box(*word, tilt) for word in words])
    assert all(sorted(order) == list(range(len(words))) for order in found)
    return [" ".join(words[place][0] for place in order) for order in found]


KEEP_CALM: list[Word] = [(word, 50, 100 + 90 * n, 60) for n, word in enumerate(["KEEP", "CALM", "AND", "CARRY", "ON"])]
COLUMNS: list[Word] = [("FRESH", 0, 100, 60), ("BREAD", 0, 200, 60), ("OPEN", 600, 100, 60), ("DAILY", 600, 200, 60)]

# The words as they should be read, in the reading order itself.
READ: dict[str, list[Word]] = {
    "small before big on one baseline": [("the", 0, 500, 48), ("BIG", 130, 500, 128)],
    "small after big": [("BIG", 0, 500, 128), ("sale", 300, 500, 40), ("below", 0, 640, 40)],
    "two small lines beside a big word": [("50%", 0, 500, 200), ("OFF", 600, 370, 70), ("TODAY", 600, 480, 70)],
    "an initial before two lines": [("A", 0, 500, 200), ("new day", 200, 380, 70), ("has come", 200, 480, 70)],
    "a raised word": [("HELLO", 0, 500, 80), ("MY", 300, 465, 80), ("WORLD", 450, 500, 80), ("below", 0, 620, 60)],
    "a superscript": [("10", 0, 500, 128), ("th", 160, 430, 60), ("YEAR", 300, 500, 128)],
    "two rows with wide gaps": [(word, 400 * (n % 3), 100 + 90 * (n // 3), 60) for n, word in enumerate("abcdef")],
    "a staircase down": [("ONE", 0, 100, 60), ("TWO", 200, 180, 60), ("THREE", 400, 260, 60)],
    "one word a line": KEEP_CALM,
}

# What is read in one of the plausible orders.
PLAUSIBLE: dict[str, tuple[list[Word], str]] = {
    "columns": (COLUMNS, "FRESH BREAD"),
    "a heading above columns": ([("A MENU FOR ALL OF TODAY", 0, 0, 60), *COLUMNS], "OPEN DAILY"),
    "columns above a last line": ([*COLUMNS, ("see you again next week", 0, 300, 60)], "FRESH BREAD OPEN DAILY"),
    "rows, too": (COLUMNS, "FRESH OPEN BREAD DAILY"),
    "a sentence beside a line": ([*KEEP_CALM, ("SALE ENDS", 500, 280, 60)], "KEEP CALM AND CARRY ON"),
    "a sentence beside two lines": ([*KEEP_CALM, ("A", 500, 150, 60), ("B", 500, 330, 60)], "KEEP CALM AND CARRY ON"),
    "a staircase up": ([("ONE", 0, 300, 60), ("TWO", 200, 200, 60), ("THREE", 400, 100, 60)], "ONE TWO THREE"),
    "a word raised above its neighbours' ends": (
        [("WELCOME", 0, 480, 70), ("TO", 270, 400, 70), ("PARIS", 345, 480, 70)],
        "WELCOME TO PARIS",
    ),
    "a word raised by more than half": (
        [("HELLO", 0, 500, 80), ("MY", 300, 430, 80), ("WORLD", 450, 500, 80), ("until the very end", 0, 640, 60)],
        "HELLO MY WORLD until",
    ),
}


@pytest.mark.parametrize("tilt", [0, 2, -2, 7, -12, 25, -40])
@pytest.mark.parametrize("name", READ)
def test_the_reading_order(name: str, tilt: float) -> None:
    assert orders(READ[name], tilt)[0] == " ".join(word for word, *_ in READ[name])


@pytest.mark.parametrize("tilt", [0, 3, -20])
@pytest.mark.parametrize("name", PLAUSIBLE)
def test_plausible_orders(name: str, tilt: float) -> None:
    words, sentence = PLAUSIBLE[name]
    assert any(sentence in order for order in orders(words, tilt))


def test_columns_of_tall_boxes_are_read_from_the_right_too() -> None:
    """Vertical writing: a tall box holds a column of characters, and the first column is the right one."""
    tall = [((x, 0.0), (x + 50, 0.0), (x + 50, 400.0), (x, 400.0)) for x in (300.0, 200.0, 100.0)]
    assert [0, 1, 2] in reading_orders(tall) and [2, 1, 0] in reading_orders(tall)
    wide = [((x, 0.0), (x + 90, 0.0), (x + 90, 40.0), (x, 40.0)) for x in (300.0, 200.0, 100.0)]
    assert reading_orders(wide) == [[2, 1, 0]]


def test_no_box_one_box_and_points() -> None:
    assert reading_orders([]) == [[]]
    point: Box = ((5, 5), (5, 5), (5, 5), (5, 5))
    assert reading_orders([point]) == [[0]]
    # A line reader says the same box for all it reads: its own order stays.
    assert reading_orders([point, point, point]) == [[0, 1, 2]]


def test_many_boxes_are_bounded_work() -> None:
    stairs = [box("ab", 10 * n, 10 * n, 90) for n in range(1000)]
    assert sorted(reading_orders(stairs)[0]) == list(range(1000))


def drawn(words: list[Word], tilt: float = 0.0) -> Image.Image:
    image = Image.new("RGB", (1024, 1024), "white")
    for text, left, baseline, size in words:
        font = ImageFont.truetype(FONT, size)
        ImageDraw.Draw(image).text((left, baseline), text, font=font, fill="black", anchor="ls")
    return image.rotate(tilt, resample=Image.Resampling.BICUBIC, fillcolor="white")


PICTURES: dict[str, tuple[str, Image.Image]] = {
    "small and big": ("the BIG", drawn([("the", 200, 500, 48), ("BIG", 320, 500, 128)])),
    "tilted": (
        "FRESH BREAD DAILY",
        drawn([(w, 80 + 360 * n, 500, 48) for n, w in enumerate(["FRESH", "BREAD", "DAILY"])], 2),
    ),
    "beside a line": (
        "KEEP CALM AND CARRY ON",
        drawn([(w, 100, 200 + 120 * n, 80) for n, (w, *_) in enumerate(KEEP_CALM)] + [("SALE ENDS", 550, 440, 60)]),
    ),
}


@pytest.fixture(scope="module")
def scorer() -> OcrScorer:
    made = OcrScorer("rapidocr", EngineOptions(mode="page", min_confidence=0.5))
    made.load()
    return made


@pytest.mark.parametrize("reward", ["multi", "flow_grpo", "strict"])
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_read_by_the_engine(scorer: OcrScorer, name: str, reward: str) -> None:
    target, picture = PICTURES[name]
    [result] = scorer.score(reward, [Item(id="a", prompt="", images=(picture,), targets=(target,))])
    assert isinstance(result, Score) and result.value == 1.0
