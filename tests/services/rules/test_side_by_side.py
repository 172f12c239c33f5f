"""`side_by_side`: colour and shape of the two things of a drawing, each on its side."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from services.kit.scorer import Failure, Item, Score
from services.rules.side_by_side import SHAPES, look, side_by_side
from wire.schema import ErrorCode

INKS = {"red": (215, 38, 38), "orange": (240, 130, 0), "blue": (35, 75, 205), "black": (20, 20, 20)}


def drawing(shape: str, color: str, *, size: int = 60, width: int = 100, height: int = 120, x: int = 50) -> Image.Image:
    """A thing as Pillow draws it, which is not how the rule does."""
    image, ink, half, y = Image.new("RGB", (width, height), "white"), INKS[color], size // 2, height // 2
    draw, sixth = ImageDraw.Draw(image), size // 6
    box = (x - half, y - half, x + half, y + half)
    lying, upright = (x - half, y - sixth, x + half, y + sixth), (x - sixth, y - half, x + sixth, y + half)
    if shape == "disc":
        draw.ellipse(box, fill=ink)
    elif shape == "ring":
        draw.ellipse(box, outline=ink, width=size // 4)
    else:
        boxes = {"square": [box], "bar": [upright], "plank": [lying], "cross": [lying, upright]}
        for each in boxes[shape]:
            draw.rectangle(each, fill=ink)
    return image


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


def item(image: Image.Image, left: object = "red disc", right: object = "blue bar") -> Item:
    return Item("a", "draw", (image,), metadata={"left": left, "right": right})  # type: ignore[dict-item]


def score(image: Image.Image, left: str = "red disc", right: str = "blue bar") -> Score:
    result = side_by_side(item(image, left, right))
    assert isinstance(result, Score)
    return result


@pytest.mark.parametrize(("shape", "color"), list(itertools.product(SHAPES, INKS)))
@pytest.mark.parametrize("size", [24, 60])
def test_things_are_seen_at_any_place_and_size_and_out_of_focus(shape: str, color: str, size: int) -> None:
    for x in (45, 55):
        image = drawing(shape, color, size=size, x=x)
        assert look(image) == (color, shape)
        assert look(image.filter(ImageFilter.GaussianBlur(size / 40))) == (color, shape)


def test_each_of_four_looks_is_a_quarter() -> None:
    image = beside(drawing("disc", "red"), drawing("bar", "blue"))
    assert score(image).value == 1.0
    assert score(image, "red disc", "blue ring").value == 0.75
    assert score(image, "orange disc", "blue ring").value == 0.5
    assert score(image, "blue bar", "red disc").value == 0.0  # each on the other's side
    found = score(image, "red cross", "red bar")
    assert found.components == {"left_color": 1.0, "left_shape": 0.0, "right_color": 0.0, "right_shape": 1.0}
    assert found.details == {"seen": {"left": "red disc", "right": "blue bar"}}


def test_what_is_no_thing_counts_nothing_not_even_for_its_colour() -> None:
    stain = drawing("disc", "red")
    pixels = np.asarray(stain).copy()
    pixels[:, ::2] = 255  # every other column is missing
    torn = Image.fromarray(pixels)
    assert look(torn) == ("red", None)
    assert score(beside(torn, drawing("bar", "blue"))).value == 0.5
    empty = Image.new("RGB", (100, 120), "white")
    assert look(empty) == (None, None)
    assert score(beside(empty, empty)).value == 0.0


def test_a_thing_of_many_colours_has_none() -> None:
    image = drawing("square", "red")
    pixels = np.asarray(image).copy()
    middle = pixels[:60]
    middle[(middle != 255).any(-1)] = INKS["blue"]
    third = pixels[50:70]
    third[(third != 255).any(-1)] = INKS["orange"]
    assert look(Image.fromarray(pixels)) == (None, "square")


@pytest.mark.parametrize(
    ("left", "code", "said"),
    [
        (None, ErrorCode.NOT_APPLICABLE, r"no metadata\.left"),
        ("red", ErrorCode.BAD_INPUT, r"metadata\.left is 'red', not a colour"),
        ("red star", ErrorCode.BAD_INPUT, "'red star'"),
        ("mauve disc", ErrorCode.BAD_INPUT, "'mauve disc'"),
        (3, ErrorCode.BAD_INPUT, "metadata.left is 3"),
    ],
)
def test_what_the_data_lacks_is_no_score(left: object, code: ErrorCode, said: str) -> None:
    result = side_by_side(item(drawing("disc", "red"), left))
    assert isinstance(result, Failure) and result.code == code and re.search(said, result.message)


def test_it_looks_at_one_image() -> None:
    picture = drawing("disc", "red")
    result = side_by_side(Item("a", "draw", (picture, picture), metadata={"left": "red disc", "right": "red disc"}))
    assert isinstance(result, Failure) and "one image; `images` has 2" in result.message
    result = side_by_side(item(Image.new("RGB", (1, 8))))
    assert isinstance(result, Failure) and "a pixel wide" in result.message
