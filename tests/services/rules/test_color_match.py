"""`color_match`: which colour is asked for, and what share of the ink has it."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from services.kit.scorer import Failure, Item, Score
from services.rules.color import NAMES, PALETTE, color_match, color_shares, nearest_names, srgb_to_lab
from wire.schema import ErrorCode

# The six inks of the quickstart's words.
INKS = {
    "red": (215, 38, 38),
    "green": (20, 140, 60),
    "blue": (35, 75, 205),
    "orange": (240, 130, 0),
    "purple": (130, 40, 160),
    "black": (20, 20, 20),
}
FONTS = [
    Path(matplotlib.get_data_path()) / "fonts/ttf" / name for name in ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf")
]


def draw_word(
    word: str,
    ink: tuple[int, int, int],
    *,
    width: int = 48,
    height: int = 24,
    size: int = 17,
    font: Path = FONTS[0],
    ground: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    image = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(image)
    face = ImageFont.truetype(str(font), size)
    left, top, right, bottom = draw.textbbox((0, 0), word, font=face)
    draw.text(((width - right + left) / 2 - left, (height - bottom + top) / 2 - top), word, fill=ink, font=face)
    return image


def score_of(image: Image.Image, color: str) -> float:
    result = color_match(Item("a", f'the word "K7QX" in {color}', (image,)))
    assert isinstance(result, Score)
    return result.value


def squares(*colors: tuple[int, int, int], ground: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Hard-edged 4x4 squares on an even ground, two apart."""
    image = Image.new("RGB", (6 * len(colors) + 2, 8), ground)
    for index, color in enumerate(colors):
        image.paste(color, (6 * index + 2, 2, 6 * index + 6, 6))
    return image


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [  # published CIELAB values of sRGB corners under D65
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0.0, 0.0)),
    ],
)
def test_lab_has_the_published_values(rgb: tuple[int, int, int], lab: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(srgb_to_lab(np.array([rgb], dtype=np.uint8))[0], lab, atol=0.02)


def test_every_palette_color_has_its_own_name() -> None:
    for index, (name, colors) in enumerate(PALETTE.items()):
        assert (nearest_names(np.array(colors, dtype=np.uint8)) == index).all(), name


@pytest.mark.parametrize("asked", INKS)
@pytest.mark.parametrize("drawn", INKS)
@pytest.mark.parametrize(("width", "height", "size"), [(48, 24, 17), (96, 48, 34), (512, 512, 150), (512, 512, 24)])
def test_anti_aliased_words_have_the_color_they_were_drawn_in(
    asked: str, drawn: str, width: int, height: int, size: int
) -> None:
    for font in FONTS:
        for word in ("K7QX", "ML4", "JVW9") if width < 512 else ("K7QX",):
            value = score_of(draw_word(word, INKS[drawn], width=width, height=height, size=size, font=font), asked)
            if asked == drawn:
                assert value > 0.9
            else:
                assert value < 0.1


@pytest.mark.parametrize("drawn", INKS)
def test_ground_need_not_be_white(drawn: str) -> None:
    for ground in ((0, 0, 0), (240, 225, 200), (128, 128, 128)):
        if np.linalg.norm(np.subtract(ground, INKS[drawn])) > 100:
            image = draw_word("K7QX", INKS[drawn], ground=ground, font=FONTS[1])
            assert score_of(image, drawn) > 0.9, ground


def test_share_is_counted_in_pixels() -> None:
    red, blue = INKS["red"], INKS["blue"]
    image = squares(red, red, red, blue)
    assert score_of(image, "red") == 48 / 64
    assert score_of(image, "blue") == 16 / 64
    assert score_of(image, "green") == 0.0


def test_edge_pixel_is_unblended_along_the_line_from_the_ground() -> None:
    """A half-covered red pixel on white is (235, 147, 147), by itself a pink; beside red it is red."""
    blend = tuple((a + b) // 2 for a, b in zip((255, 255, 255), INKS["red"], strict=True))
    assert NAMES[nearest_names(np.array([blend], dtype=np.uint8))[0]] == "pink"
    image = squares(INKS["red"])
    image.paste(blend, (6, 2, 7, 6))  # a column of edge pixels to the right of the square
    shares, count = color_shares(image)
    assert count == 20
    assert shares[NAMES.index("red")] == 1.0


def test_faint_edge_and_noise_are_not_ink() -> None:
    image = squares(INKS["black"])
    image.paste((200, 200, 200), (6, 2, 7, 6))  # under half the contrast of the black beside it
    assert color_shares(image)[1] == 16
    speckled = Image.new("RGB", (20, 8), (250, 250, 250))
    speckled.paste(INKS["black"], (2, 2, 6, 6))
    speckled.paste((215, 215, 215), (14, 3, 16, 5))  # contrast 35 * sqrt(3) = 60.6, below 64
    assert color_shares(speckled)[1] == 16


def test_unblending_stops_at_the_edge_of_the_color_cube() -> None:
    """Yellow beside black has less contrast than its neighbour, but hardly any blue left to lose: it is no edge.

    Stretched to the contrast of black and cut off at 0 it would be (247, 187, 0), an orange.
    """
    image = Image.new("RGB", (12, 8), "white")
    image.paste(INKS["black"], (2, 2, 4, 6))
    image.paste((250, 215, 20), (4, 2, 6, 6))
    assert score_of(image, "yellow") == score_of(image, "black") == 0.5


def test_gray_and_pink_keep_their_names_although_black_and_red_edges_look_like_them() -> None:
    assert score_of(squares((128, 128, 128)), "gray") == 1.0
    assert score_of(squares((255, 150, 180)), "pink") == 1.0


def test_blur_and_noise_lower_the_score_gradually() -> None:
    clean = draw_word("K7QX", INKS["green"])
    noise = np.random.default_rng(0).normal(0, 20, (24, 48, 3))
    noisy = Image.fromarray(np.clip(np.asarray(clean) + noise, 0, 255).astype(np.uint8))
    blurred = clean.filter(ImageFilter.GaussianBlur(1.0))
    for image in (noisy, blurred):
        assert 0.5 < score_of(image, "green") <= score_of(clean, "green")


@pytest.mark.parametrize("color", ["white", "red"])
def test_blank_image_scores_zero_with_details(color: str) -> None:
    result = color_match(Item("a", f"a square in {color}", (Image.new("RGB", (48, 24), "white"),)))
    assert result == Score(0.0, details={"target": color, "ink_pixels": 0, "shares": {}})


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (300, 3)])
def test_tiny_images_are_scored(size: tuple[int, int]) -> None:
    assert score_of(Image.new("RGB", size, "red"), "red") == 0.0


def test_other_modes_and_transparency() -> None:
    image = squares(INKS["red"])
    clear = image.convert("RGBA")
    clear.putdata([(*pixel[:3], 0) if pixel[:3] == (255, 255, 255) else pixel for pixel in clear.get_flattened_data()])
    clear.paste((0, 0, 255, 0), (0, 0, 20, 1))  # hidden blue must not show
    assert score_of(clear, "red") == 1.0
    assert score_of(image.convert("P", palette=Image.Palette.ADAPTIVE), "red") == 1.0
    assert score_of(squares((30, 30, 30)).convert("L"), "black") == 1.0


def target_of(prompt: str, **metadata: object) -> object:
    result = color_match(Item("a", prompt, (squares(INKS["red"]),), metadata=metadata))
    return result.details["target"] if isinstance(result, Score) else result.code


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ('the word "K7QX" in red', "red"),
        ('the word "RED" in Blue', "blue"),
        ("the word “green” in purple", "purple"),
        ("the word ‘green’ in purple", "purple"),
        ("the word 'green' in purple", "purple"),
        ("「black」, in orange", "orange"),
        ("a dog that isn't red, it's said", "red"),
        ("grey ink", "gray"),
        ("navy ink", "blue"),
        ("red on red", "red"),
        ("a scarlet, crimson sign", "red"),
    ],
)
def test_target_comes_from_the_prompt_outside_quotes(prompt: str, target: str) -> None:
    assert target_of(prompt) == target


@pytest.mark.parametrize("prompt", ["a dog", 'the word "RED"', "red and blue", "a redder dog", ""])
def test_no_color_or_two_is_not_applicable(prompt: str) -> None:
    assert target_of(prompt) is ErrorCode.NOT_APPLICABLE


def test_metadata_wins_over_the_prompt() -> None:
    assert target_of("red and blue", color=" Grey ") == "gray"
    assert target_of("in red", color=None) == "red"


@pytest.mark.parametrize("value", ["teal", "", 3, ["red"]])
def test_unknown_metadata_color_is_bad_input_and_names_the_known(value: object) -> None:
    result = color_match(Item("a", "in red", (squares(INKS["red"]),), metadata={"color": value}))
    assert isinstance(result, Failure)
    assert result.code is ErrorCode.BAD_INPUT
    assert "metadata.color" in result.message
    assert repr(value) in result.message
    assert "orange" in result.message


@pytest.mark.parametrize("count", [0, 2])
def test_needs_one_image(count: int) -> None:
    result = color_match(Item("a", "in red", (squares(INKS["red"]),) * count, completion="x"))
    assert isinstance(result, Failure)
    assert result.code is ErrorCode.BAD_INPUT
    assert f"`images` has {count}" in result.message


def test_large_pictures_are_reduced_and_score_the_same() -> None:
    small = draw_word("K7QX", INKS["red"], width=512, height=256, size=180)
    large = small.resize((4096, 2048), Image.Resampling.BICUBIC)
    shares_small, _ = color_shares(small)
    shares_large, count = color_shares(large)
    assert count < 1 << 20, "counted on the reduced picture"
    assert shares_large[NAMES.index("red")] == pytest.approx(shares_small[NAMES.index("red")], abs=0.01)
