"""Where tokens of texts and images lie, who sees whom, how images are scaled and cut, and what a laid row learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from trainer.config import ConfigError
from trainer.data.sequences import ImageItem, Resize, SequencePlan, TextItem
from trainer.policies.base import Laying
from trainer.policies.unified.attention import sees
from trainer.policies.unified.neo.images import MEAN, STD, cut, pixel_limit, scaled_size
from trainer.policies.unified.neo.patches import turned_by_place
from trainer.policies.unified.neo.places import places_of
from trainer.policies.unified.neo.policy import NeoPolicy
from trainer.policies.unified.neo.rows import packed

T, P = 1, 7  # the ids of a text's token and of an image's
PLAIN = Laying(seed=0)


def test_two_images_and_text_have_their_indexes() -> None:
    """Text counts on; an image's tokens share the next time and have rows and columns (NEO, arXiv 2510.14979, Native-RoPE)."""
    ids = torch.tensor([T, T, P, P, P, P, T, T, P, P, T])
    places, images = places_of(ids, [(2, 2), (1, 2)], P)
    assert places.tolist() == [
        [0, 1, 2, 2, 2, 2, 3, 4, 5, 5, 6],
        [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0],
    ]
    assert images.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 2, 2, 0]
    with pytest.raises(ValueError, match=r"the images have \[4\] tokens, the text has places for \[4, 2\]"):
        places_of(ids, [(2, 2)], P)


def test_an_image_sees_itself_whole_and_no_row_sees_another(neo: NeoPolicy, neo_pictures: list[str]) -> None:
    image = ImageItem(neo_pictures[0], "seen")
    plan = SequencePlan(
        "row", (TextItem("the", role="user"), image, TextItem("left"), TextItem("red", learnt=True, role="assistant"))
    )
    rows = [neo.lay(plan, PLAIN).row] * 2
    given, layout = packed(rows, torch.device("cpu"))
    count = len(rows[0].ids_T)
    images = (rows[0].ids_T == neo.model.processor.image_id).nonzero()[:, 0].tolist()
    assert len(images) == 4  # 32 x 32 pixels are 2 x 2 tokens
    seen = sees(layout, torch.arange(2 * count)[:, None], torch.arange(2 * count)[None])
    expected = torch.zeros(2 * count, 2 * count, dtype=torch.bool)
    for start in (0, count):
        expected[start : start + count, start : start + count] = torch.ones(count, count).tril().bool()
        for place in images:
            expected[start + place, [start + other for other in images]] = True
    assert torch.equal(seen, expected)
    assert layout.block_N[count + images[0]] == 2 and given.image_I is not None and len(given.image_I) == 8


@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ((125, 140), (128, 128)),  # the nearest multiples
        ((100, 100), (128, 128)),  # 96 x 96 would be fewer than 12,544 pixels
        ((40, 700), (32, 704)),
        ((1000, 1000), (512, 512)),  # at most 262,144 pixels
        ((500, 2000), (256, 1024)),
        ((600, 2100), (256, 928)),  # both sides rounded down
        ((50, 100), (96, 160)),
    ],
)
def test_images_become_whole_tokens_within_their_limits(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    assert scaled_size(*size, 32, 12544, 262144) == scaled
    assert 12544 <= scaled[0] * scaled[1] <= 262144


def test_several_images_share_what_two_may_have() -> None:
    limits = [pixel_limit(count, 12544, 262144) for count in (0, 1, 2, 4, 100)]
    assert limits == [262144, 262144, 262144, 131072, 12544]
    with pytest.raises(ValueError, match="an image of 2010 x 10 pixels is more than 200 times as long as it is wide"):
        scaled_size(10, 2010, 32, 12544, 262144)


def test_patches_of_a_token_stand_together_with_their_places() -> None:
    image = Image.new("RGB", (64, 32))
    for x in range(64):
        for y in range(32):
            image.putpixel((x, y), (x, y, 200))
    found = cut(image, 8, 2, 1, 10**6)
    assert found.grid == (2, 4) and found.numbers_MC.shape == (32, 192)
    assert found.places_M2[:6].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3]]
    assert found.places_M2[16:18].tolist() == [[2, 0], [2, 1]]
    pixels = (
        found.numbers_MC.reshape(32, 3, 8, 8) * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    )
    column, row = (found.places_M2[:, axis, None] * 8 + torch.arange(8) for axis in (1, 0))
    torch.testing.assert_close(pixels[:, 0] * 255, column[:, None].expand(-1, 8, -1).float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(pixels[:, 1] * 255, row[:, :, None].expand(-1, -1, 8).float(), atol=1e-3, rtol=0)


def test_patches_turn_by_column_then_row_in_neighbouring_pairs() -> None:
    """The first half of the features by the column, the second by the row; pairs are neighbours, angles place * theta^(-2i/D)."""
    features = torch.tensor([[1.0, 0, 1, 0, 1, 0, 1, 0]])
    turned = turned_by_place(features, torch.tensor([[2, 3]]), 100.0)[0]
    angles = torch.tensor([3.0, 0.3, 2.0, 0.2])  # 3 and 3 / 100^(1/2), then 2 and 2 / 100^(1/2)
    torch.testing.assert_close(turned[0::2], angles.cos())
    torch.testing.assert_close(turned[1::2], angles.sin())


def test_a_row_is_laid_as_it_is_asked_and_its_answers_are_learnt(neo: NeoPolicy, neo_pictures: list[str]) -> None:
    plan = SequencePlan(
        "row 3",
        (
            TextItem("the", role="system"),
            TextItem("", role="user"),
            ImageItem(neo_pictures[0], "seen"),
            TextItem("\nwhat color"),
            TextItem("red disc", learnt=True, role="assistant"),
            TextItem("how many", role="user"),
            TextItem("one", role="assistant"),  # said before, and not learnt
            TextItem("which", role="user"),
            TextItem("two", learnt=True, role="assistant"),
        ),
    )
    laid = neo.lay(plan, PLAIN)
    tokenizer = neo.model.tokenizer
    image = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    start, end = "<|im_start|>", "<|im_end|>\n"
    expected = (
        f"{start}system\nthe{end}{start}user\n{image}\nwhat color{end}{start}assistant\nred disc{end}"
        f"{start}user\nhow many{end}{start}assistant\none{end}{start}user\nwhich{end}{start}assistant\ntwo{end}"
    )
    assert laid.row.ids_T.tolist() == tokenizer(expected)["input_ids"]
    learnt = [tokenizer.convert_ids_to_tokens(token) for token in laid.row.ids_T[laid.learnt_T].tolist()]
    assert learnt == ["red", "disc", "<|im_end|>", "\n", "two", "<|im_end|>", "\n"]
    assert laid.learnt == (4, 3) and laid.drawn == 0 and laid.length == len(laid.row.ids_T)
    again = neo.lay(plan, PLAIN)
    for name in ("ids_T", "places_3T", "images_T", "patches_MC", "patch_places_M2"):
        assert torch.equal(getattr(again.row, name), getattr(laid.row, name)), name


def test_a_row_learns_what_its_prompt_would_be_answered(neo: NeoPolicy, neo_pictures: list[str]) -> None:
    """The errors of a learnt answer are the log-probabilities that the same answer to the same prompt has when it is drawn."""
    from trainer.types import Prompt

    prompt = Prompt("a", "<image>\nwhat color", source_images=(neo_pictures[0],))
    reading = neo.model.read(prompt)
    items = (TextItem("", role="user"), ImageItem(neo_pictures[0], "seen"), TextItem("\nwhat color"))
    laid = neo.lay(SequencePlan("row", (*items, TextItem("red disc", learnt=True, role="assistant"))), PLAIN)
    answer = laid.row.ids_T[laid.learnt_T].tolist()
    assert laid.row.ids_T.tolist() == [*reading.ids_T.tolist(), *answer]
    with torch.no_grad():
        errors, logp = neo.read([laid]).cross_entropy_T, neo.logp([reading], [answer])[0]
    torch.testing.assert_close(errors, -logp)


def test_a_pack_is_its_rows_and_an_image_moves_what_is_learnt(neo: NeoPolicy, neo_pictures: list[str]) -> None:
    def plan(number: int, path: str | None, question: str) -> SequencePlan:
        image = [] if path is None else [ImageItem(path, "seen")]
        asked = (TextItem(question, role="user"), *image, TextItem("red disc", learnt=True, role="assistant"))
        return SequencePlan(f"row {number}", asked)

    rows = [
        neo.lay(plan(*each), PLAIN)
        for each in [
            (0, neo_pictures[0], "what"),
            (1, None, "what color is the"),
            (2, neo_pictures[2], "which"),
            (3, neo_pictures[1], "what"),
        ]
    ]
    with torch.no_grad():
        together = neo.read(rows)
        alone = [neo.read([row]).cross_entropy_T for row in rows]
    torch.testing.assert_close(together.cross_entropy_T, torch.cat(alone), atol=1e-5, rtol=0)
    assert together.squared_error_L.shape == (0,) and together.cross_entropy_T.shape == (16,)
    assert (alone[0] - alone[3]).abs().max() > 1e-3, "another image"


def test_a_pack_without_images_trains_the_patches_by_nothing(neo: NeoPolicy) -> None:
    """They are called all the same, so that ranks whose packs have images do not wait for those that have none."""
    row = neo.lay(
        SequencePlan("row", (TextItem("what", role="user"), TextItem("red", learnt=True, role="assistant"))), PLAIN
    )
    neo.trainable.zero_grad()
    neo.read([row]).cross_entropy_T.sum().backward()
    gradients = {name: p.grad for name, p in neo.trainable.named_parameters()}
    neo.trainable.zero_grad()
    patches = [gradient for name, gradient in gradients.items() if name.startswith("vision_model.")]
    assert all(gradient is not None and not gradient.any() for gradient in patches) and len(patches) == 4
    head = gradients["language_model.lm_head.weight"]
    assert head is not None and head.any()


def test_layers_computed_again_have_the_same_gradient(neo: NeoPolicy, neo_pictures: list[str]) -> None:
    items = (
        TextItem("what", role="user"),
        ImageItem(neo_pictures[0], "seen"),
        TextItem("red", learnt=True, role="assistant"),
    )
    row = neo.lay(SequencePlan("row", items), PLAIN)
    found = []
    for recomputes in (False, True):
        neo.model.network.recomputes = recomputes
        neo.trainable.zero_grad()
        neo.read([row]).cross_entropy_T.sum().backward()
        found.append({name: p.grad.clone() for name, p in neo.trainable.named_parameters() if p.grad is not None})
    neo.trainable.zero_grad()
    neo.model.network.recomputes = False
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_what_may_be_left_out_is_left_out_by_the_seed(neo: NeoPolicy, neo_pictures: list[str]) -> None:
    items = (
        TextItem("what color", role="user", droppable=True),
        ImageItem(neo_pictures[0], "seen", droppable=True),
        TextItem("red", learnt=True, role="assistant"),
    )
    plan = SequencePlan("row", items)
    lengths = {neo.lay(plan, replace(PLAIN, seed=seed, drop_seen=0.5)).length for seed in range(20)}
    assert len(lengths) == 2 and max(lengths) - min(lengths) == 6
    assert neo.lay(plan, replace(PLAIN, drop_seen=1.0, drop_text=0.0)).row.patches_MC.shape == (0, 192)
    assert neo.lay(plan, PLAIN).length == max(lengths)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([TextItem("red", role="user")], "row 7 has nothing that is learnt: no turn of an assistant"),
        (
            [ImageItem("a.png", "drawn")],
            "row 7 has the image a.png to be drawn, but policy.type neo sees images and draws none",
        ),
        ([ImageItem("a.png", "seen")], "row 7: its image a.png cannot be read"),
        (
            [ImageItem("a.png", "seen", resize=Resize(16, 64, 32))],
            "row 7: packed.groups.<n>.seen_size does not act on policy.type neo",
        ),
        ([TextItem("an <img>", role="user")], "row 7 has <img> in its text, which stands for an image in this model"),
    ],
)
def test_a_row_that_cannot_be_laid_is_named(neo: NeoPolicy, items: list[Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        neo.lay(SequencePlan("row 7", (*items,)), PLAIN)
    assert str(raised.value).startswith(said)


def test_an_image_too_long_for_its_width_names_its_row(neo: NeoPolicy, tmp_path: Path) -> None:
    Image.new("RGB", (2100, 10)).save(tmp_path / "line.png")
    items = (ImageItem(str(tmp_path / "line.png"), "seen"), TextItem("red", learnt=True, role="assistant"))
    with pytest.raises(ConfigError, match="row 7: an image of 2100 x 10 pixels is more than 200 times"):
        neo.lay(SequencePlan("row 7", items), PLAIN)
