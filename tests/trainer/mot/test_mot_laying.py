"""How a row is laid out: frames, positions, what may be left out, what is predicted, and what is refused by name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.small_mot import image, picture, row, small_mot, text
from trainer.config import ConfigError
from trainer.config.mot import MotConfig
from trainer.data.sequences import ImageItem, Resize, SequencePlan
from trainer.policies.base import Laying
from trainer.policies.unified.mot.inference.context import Context
from trainer.policies.unified.mot.lay import LaidRow, lay_row
from trainer.policies.unified.mot.pictures import fitted, read_rgb, scaled
from trainer.policies.unified.mot.policy import MotPolicy
from trainer.samplers.schedules import shifted
from trainer.types import Prompt


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> str:
    return picture(tmp_path_factory.mktemp("red"), "red", size=(16, 8))  # 2 x 1 tokens, seen or drawn


def _positions(laid: LaidRow) -> list[int]:
    return [position for _, position, *_ in laid.und]


def _tags(policy: MotPolicy, laid: LaidRow) -> list[str]:
    return policy.model.words.tokenizer.convert_ids_to_tokens(laid.words)  # type: ignore[no-any-return]


# 16 x 8 pixels stay as they are: the sides are multiples of a token's.
SMALL = Resize(8, 16, 8)


def test_a_row_of_everything(policy: MotPolicy, red: str) -> None:
    """Refinement in small: asked, drawn, the same read and seen, a suggestion, drawn again."""
    plan = row(
        "refine",
        text("draw red"),
        image(red, "drawn", resize=SMALL),
        image(red, "clean", resize=SMALL),
        image(red, "seen", resize=SMALL),
        text("make blue", learnt=True, then_image=True),
        image(red, "drawn", resize=SMALL),
    )
    laid = policy.lay(plan, Laying(0, copies=2))
    frame = ["<|vision_start|>", "<|vision_end|>"]
    first, second = ["draw", "\N{LOWER ONE EIGHTH BLOCK}red"], ["make", "\N{LOWER ONE EIGHTH BLOCK}blue"]
    assert _tags(policy, laid) == [
        *("<|im_start|>", *first, "<|im_end|>"),
        *(frame * 2),  # two noised copies: their latents are the other expert's
        *frame,
        *frame,
        *("<|im_start|>", *second, "<|im_end|>"),
        *(frame * 2),
    ]
    # A text moves on by a position a token, an image that is read by one, a noised one by none.
    assert _positions(laid) == [0, 1, 2, 3, *[4] * 4, *[4] * 2, *[5] * 4, 6, 7, 8, 9, *[10] * 4]
    assert [each.position for each in laid.latents] == [4, 4, 4, 10, 10]
    assert [each.level > 0 for each in laid.latents] == [True, True, False, True, True]
    assert [noised for *_, noised in laid.und] == [*[False] * 4, *[True] * 4, *[False] * 10, *[True] * 4]
    assert len({each.block for each in laid.latents}) == 5, "each copy is an image of its own"
    # What is predicted: of the learnt text its words, from where it begins, what ends it, and from there that an image begins.
    begin = 4 + 4 + 2 + 4
    words = policy.model.words
    ids = [*words.encode("make blue"), words.end, words.image_start]
    assert laid.asked == list(zip([begin, begin + 1, begin + 2, begin + 3], ids, strict=True))
    assert laid.learnt == (3, 1) and laid.drawn == 4 * 2 and laid.length == len(laid.und) + 5 * 2


def test_what_is_left_out_takes_a_position_where_it_is_an_image(policy: MotPolicy, red: str) -> None:
    plan = row(
        "edit",
        text("draw", droppable=True),
        image(red, "clean", resize=SMALL, droppable=True),
        image(red, "seen", resize=SMALL, droppable=True),
        text("red", droppable=True, learnt=True),
        image(red, "drawn", resize=SMALL),
    )
    bare = policy.lay(plan, Laying(0, drop_text=1, drop_clean=1, drop_seen=1))
    assert _positions(bare) == [2, 2], "only what is drawn is left, behind two images"
    assert bare.learnt == () and bare.drawn == 2 and bare.seen == []
    kept = policy.lay(plan, Laying(0, drop_clean=1))
    assert _positions(kept) == [0, 1, 2, *[4] * 4, 5, 6, 7, 8, 8] and kept.learnt == (2,)
    out = policy.read([bare])
    assert out.squared_error_L.isfinite().all() and out.cross_entropy_T.shape == (0,)


def test_each_condition_is_left_out_as_often_as_said_and_by_itself(policy: MotPolicy, red: str) -> None:
    plan = row("edit", text("draw", droppable=True), text("red"), text("blue", droppable=True))
    lengths = [policy.lay(plan, Laying(seed, drop_text=0.3)).length for seed in range(400)]
    dropped = [(9 - length) // 3 for length in lengths]
    share = [dropped.count(number) / 400 for number in range(3)]
    assert share == pytest.approx([0.49, 0.42, 0.09], abs=0.06), "two droppable texts, independent"


def test_a_row_depends_on_its_seed_alone(policy: MotPolicy, red: str) -> None:
    plan = row("one", text("draw", droppable=True), image(red, "drawn", resize=SMALL))
    with ThreadPoolExecutor(4) as pool:  # as rows are read ahead
        laid = list(pool.map(lambda seed: policy.lay(plan, Laying(seed % 5, drop_text=0.5)), range(40)))
    for number, each in enumerate(laid):
        again = policy.lay(plan, Laying(number % 5, drop_text=0.5))
        assert each.und == again.und and each.latents[0].level == again.latents[0].level
        assert torch.equal(each.latents[0].noise, again.latents[0].noise)  # type: ignore[arg-type]
    assert len({each.latents[0].level for each in laid}) == 5


def test_noise_levels_are_shifted_logistic_normals_or_those_that_are_given(policy: MotPolicy, red: str) -> None:
    given = [(0.5, 4), (0.1, 4), (0.9, 4), (0.5, 3)]
    assert [round(shifted(*each), 6) for each in given] == [0.8, 0.307692, 0.972973, 0.75]
    plan = row("one", image(red, "drawn", resize=SMALL))
    # Shifted after the sigmoid: taken back, the logits are a standard normal (Kolmogorov and Smirnov, at 1 in 1,000).
    laid = [policy.lay(plan, Laying(seed, shift=4.0, copies=64)) for seed in range(60)]
    levels = torch.tensor([each.level for row in laid for each in row.latents], dtype=torch.float64)
    shares = torch.special.ndtr(torch.logit(levels / (4 - 3 * levels)).sort().values)
    count = len(levels)
    assert count == 60 * 64 and (shares - torch.arange(1, count + 1) / count).abs().max() * count**0.5 < 1.95
    fixed = policy.lay(plan, Laying(0, levels=(0.25, 0.95), copies=2))
    assert [each.level for each in fixed.latents] == [0.25, 0.95]
    with pytest.raises(ValueError, match="2 levels for 1 copies"):
        policy.lay(plan, Laying(0, levels=(0.25, 0.95)))


@pytest.mark.parametrize(
    ("size", "resize", "wanted"),
    [
        ((1024, 1024), Resize(16, 1024, 512), (1024, 1024)),
        ((2000, 1000), Resize(16, 1024, 512), (1024, 512)),
        ((300, 200), Resize(16, 1024, 512), (768, 512)),
        ((3000, 100), Resize(16, 1024, 512), (1024, 32)),  # too narrow for both: the longest side decides
        ((640, 480), Resize(14, 532, 224), (532, 392)),  # 399 lies in the middle: to the even number of strides
        ((2048, 2048), Resize(16, 2048, 512), (880, 880)),  # above the most pixels, well below them
        ((100, 100), Resize(14, 532, 224), (224, 224)),
        ((5, 5), Resize(8, 32, 0), (8, 8)),
    ],
)
def test_images_are_scaled_between_a_shortest_and_a_longest_side(
    size: tuple[int, int], resize: Resize, wanted: tuple[int, int]
) -> None:
    assert fitted(*size, resize) == wanted


@pytest.mark.parametrize(("among", "wanted"), [(1, (980, 980)), (2, (924, 924)), (4, (462, 462))])
def test_images_of_a_conversation_share_the_most_pixels(among: int, wanted: tuple[int, int]) -> None:
    """14 * 14 * 9 * 1024 pixels, evenly: 980 * 980 is above a half of them, by 1.063 as published, and then to the stride."""
    assert fitted(2000, 2000, Resize(14, 980, 224), among) == wanted


def test_a_row_says_how_many_images_share_them(
    policy: MotPolicy, red: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def scale(rgb: Image.Image, resize: Resize, among: int) -> torch.Tensor:
        asked.append(among)
        return torch.zeros(8, 8, 3, dtype=torch.uint8)

    monkeypatch.setattr("trainer.policies.unified.mot.lay.scaled", scale)
    model = policy.model
    blue = picture(tmp_path, "blue")
    plan = row("rows.json row 1", *[image(red, "seen", among=3)] * 3, image(blue, "drawn"))
    lay_row(plan, Laying(0), model.words, model.ways)
    assert asked == [3, 3, 3, 1]
    question = Prompt("q", "what", source_images=("a.png", "b.png"))
    assert [item.among for item in Context("q").questioned(question).items if isinstance(item, ImageItem)] == [2, 2]
    assert {item.among for item in Context("q").asked(question).items if isinstance(item, ImageItem)} == {1}


def test_an_image_that_a_row_uses_twice_is_decoded_once(policy: MotPolicy, red: str) -> None:
    """An edit's source: by its latents and seen, at two scales."""
    opened = []

    def reader(path: str) -> Image.Image:
        opened.append(path)
        return read_rgb(path)

    plan = row("edit", image(red, "clean", resize=SMALL), image(red, "seen"), image(red, "drawn"))
    laid = lay_row(plan, Laying(0), policy.model.words, policy.model.ways, reader=reader)
    assert opened == [red] and len(laid.drawn_from) == 2 and len(laid.seen) == 1


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (scaled(read_rgb(str(tmp_path / "clear.png")), Resize(8, 8, 8)) == 255).all()


def _bad(case: str, folder: Path) -> SequencePlan:
    red = picture(folder, "red")
    if case == "missing":
        return row("rows.json row 3", image(str(folder / "none.png"), "drawn"))
    if case == "cut off":
        data = Path(red).read_bytes()
        (folder / "cut.png").write_bytes(data[: len(data) // 2])
        return row("rows.json row 3", image(str(folder / "cut.png"), "drawn"))
    if case == "no image":
        (folder / "text.png").write_text("not a picture")
        return row("rows.json row 3", image(str(folder / "text.png"), "seen"))
    if case == "stride":
        return row("rows.json row 3", image(red, "drawn", resize=Resize(12, 32, 8)))
    if case == "large":
        return row("rows.json row 3", image(red, "drawn", resize=Resize(8, 128, 128)))
    return row("rows.json row 3", text("draw \N{SNOWMAN}"), image(red, "drawn"))


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("missing", r"image .*none\.png cannot be read.*replace the file"),
        ("cut off", r"image .*cut\.png cannot be read"),
        ("no image", r"image .*text\.png cannot be read"),
        ("stride", r"multiples of 12 pixels, and a token of this model is 8.*multiple of 8"),
        ("large", r"128 x 128 pixels, and this model places at most 64 on a side; set the longest side to 64"),
        ("letter", r"'\N{SNOWMAN}' of 'draw \N{SNOWMAN}' has no token"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(policy: MotPolicy, tmp_path: Path, case: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^rows\.json row 3: .*{said}.*leave the row out"):
        policy.lay(_bad(case, tmp_path), Laying(0))


def test_words_are_tokens_and_texts_come_back_as_they_were(policy: MotPolicy) -> None:
    words = policy.model.words
    for written in ("draw red disc", "<think>left blue</think>", "a word: unheard-of, 42\nand more  space"):
        assert words.decode(words.encode(written)) == written
    assert len(words.encode("draw red disc left")) == 4 and len(words.encode("redx")) == 2
    assert words.decode([words.start, *words.encode("red"), words.end, words.image_start]) == "red"


def test_words_as_constants_change_gradients_and_nothing_else(tmp_path: Path) -> None:
    parts = ("language", "vision", "connector")
    path = picture(tmp_path, "one")
    # Behind a clean image, so that words carry a gradient from what is drawn to its latents.
    plan = row("one", image(path, "clean"), text("draw red"), image(path, "drawn"))
    whole, constant = small_mot(freeze=parts), small_mot(freeze=parts, constant_words=True)
    found = []
    for policy in (whole, constant):
        out = policy.read([policy.lay(plan, Laying(0))])
        out.squared_error_L.mean().backward()  # type: ignore[no-untyped-call]
        grads = {name: each.grad for name, each in policy.trainable.named_parameters() if each.grad is not None}
        found.append((out.squared_error_L.detach(), grads))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    head, first = "llm2vae.weight", "language_model.model.layers.0.self_attn.v_proj_moe_gen.weight"
    assert torch.equal(found[0][1][head], found[1][1][head]), "what comes last has no words behind it"
    assert not torch.allclose(found[0][1][first], found[1][1][first])
    with pytest.raises(ValueError, match=r"constant_words belongs to freeze = \[language, vision, connector\]"):
        MotConfig(type="mot", initialize={}, constant_words=True, freeze=("language",))  # type: ignore[arg-type]
